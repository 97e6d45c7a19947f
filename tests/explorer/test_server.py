"""The server answers this machine only, restricts scripts, and follows a rebuilt catalogue; the job queue."""

import json
import shutil
import threading
from pathlib import Path

import pytest
from tests.explorer.made_up import RUN, make_study

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.explorer.app import HOST, PAGES, make_app, start
from circuitloom.explorer.prompt_service import MAX_FINISHED_JOBS, JobQueue
from circuitloom.report.templates import read


@pytest.fixture(scope="module")
def client(made_up):
    return make_app(made_up).server.test_client()


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "localhost", "[::1]:8050", "127.0.0.1"])
def test_requests_under_any_name_of_this_machine_are_answered(client, host) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:8050", "127.0.0.1.example.org", "192.168.0.9:8050"]
)
def test_a_foreign_name_that_resolves_to_this_machine_is_refused(client, host) -> None:
    answer = client.get("/_dash-layout", headers={"Host": host})
    assert answer.status_code == 403
    assert RUN not in answer.text


def test_requests_that_a_page_of_another_site_sends_are_refused(client) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 500), ("none", 500)):
        answer = client.post("/_dash-update-component", json={}, headers={"Sec-Fetch-Site": site})
        # an empty request of the own page reaches Dash, which fails on it
        assert (answer.status_code == 403) == (status == 403), site


def test_the_policy_allows_only_scripts_of_the_server(client) -> None:
    answer = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server-Timing"].startswith("app;dur=")


@pytest.mark.parametrize("name", [name for name in PAGES if name != "feature"])
def test_every_page_opens_without_parameters(client, name) -> None:
    request = {
        "output": "..page.children...where.data..",
        "outputs": [{"id": "page", "property": "children"}, {"id": "where", "property": "data"}],
        "inputs": [
            {"id": "url", "property": "pathname", "value": f"/{name}"},
            {"id": "url", "property": "search", "value": ""},
        ],
        "changedPropIds": ["url.pathname"],
    }
    answer = client.post("/_dash-update-component", json=request)
    assert answer.status_code == 200
    assert '"className": "error"' not in json.dumps(answer.json)


@pytest.mark.parametrize(("name", "kind"), [("graph.js", "text/javascript"), ("graph.css", "text/css")])
def test_the_graph_component_of_the_report_is_served_and_loaded(client, name, kind) -> None:
    with client.get(f"/{name}") as answer:
        assert (answer.status_code, answer.mimetype) == (200, kind)
        assert answer.text == read(name)
    assert f'"/{name}"' in client.get("/").text


def test_only_this_machine_can_connect(made_up) -> None:
    server = start(made_up, 0)
    try:
        assert server.server_address[0] == HOST == "127.0.0.1"
        with pytest.raises(ValueError, match=rf"port {server.port} is taken .* choose another with --port"):
            start(made_up, server.port)
    finally:
        server.server_close()


def test_without_a_catalogue_the_remedy_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="make it with `snakemake catalog`"):
        make_app(tmp_path)


def test_a_rebuilt_catalogue_is_reopened(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study")
    catalogue = CatalogClient(folder)
    before = catalogue.edition
    assert catalogue.ask("contents").first["runs"] == 2
    shutil.rmtree(folder / "cases")
    build_catalog(folder)
    assert catalogue.ask("contents").first["claims"] == 0
    assert catalogue.edition != before


def test_threads_query_while_the_catalogue_is_rebuilt(made_up, tmp_path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(made_up, folder)
    catalogue, found, errors = CatalogClient(folder), [], []

    def ask() -> None:
        try:
            for _ in range(20):
                found.append(catalogue.ask("contents").first["runs"])
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        build_catalog(folder)
    for thread in threads:
        thread.join()
    assert (errors, found) == ([], [2] * 80)


def _fails() -> None:
    raise ValueError("it fails")


def test_a_job_reports_its_status_runs_once_and_is_retried_after_a_failure() -> None:
    jobs, go, seen = JobQueue(), threading.Event(), []

    def work(progress) -> str:
        progress("working")
        seen.append(1)
        go.wait(10)
        return "made"

    first, again = jobs.start("a", work), jobs.start("a", work)
    assert first is again
    later = jobs.start("b", lambda progress: _fails())
    while first.status != "working":
        pass
    assert (later.status, later.done) == ("waiting", False)
    go.set()
    assert first.finished.wait(10) and later.finished.wait(10)
    assert (first.result, seen, later.error) == ("made", [1], "it fails")
    assert jobs.start("b", lambda progress: 2, retry=False) is later
    assert jobs.start("b", lambda progress: 2).finished.wait(10)
    assert jobs.start("b", lambda progress: 3).result == 2


def test_only_the_latest_results_are_kept() -> None:
    jobs = JobQueue()
    for i in range(MAX_FINISHED_JOBS + 5):
        assert jobs.start(i, lambda progress: "old").finished.wait(10)
    jobs.start("last", lambda progress: None).finished.wait(10)
    again = jobs.start(0, lambda progress: "new")
    assert again.finished.wait(10) and again.result == "new"
    assert jobs.start(MAX_FINISHED_JOBS + 4, lambda progress: "new").result == "old"
