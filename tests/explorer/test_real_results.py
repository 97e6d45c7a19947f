"""Every page over real results, if there are any: the source of the README's screenshots."""

from pathlib import Path

import pytest
from tests.explorer.browser import serving, visiting

from circuitloom.catalog.client import CatalogClient
from circuitloom.explorer.urls import feature_link, link

RESULTS = Path(__file__).parents[2] / "results"
PROMPTS = {
    "quickstart": ("he was caught", "logit by vs fire"),
    "stories260k": ("Lily was very sad. Then", "logit she vs he"),
}


@pytest.fixture(params=PROMPTS)
def visit(request, browser):
    folder = RESULTS / request.param
    if not (folder / "catalog.duckdb").is_file():
        pytest.skip(f"needs results of {request.param}: run its study first")
    with serving(folder) as address, visiting(browser, address) as visit:
        visit.name, visit.catalogue = request.param, CatalogClient(folder)
        yield visit
        assert visit.problems == []


def best_feature(catalogue: CatalogClient) -> dict:
    """A feature of the traced run: the best for the concept `caught_passive`, else the one that fires most often."""
    traced = "WHERE run IN (SELECT run FROM trace)"
    concept = f"SELECT run, layer, feature FROM features_of_concept('caught_passive') {traced} LIMIT 1"
    most_frequent = f"SELECT run, layer, feature FROM feature {traced} ORDER BY n_tokens DESC LIMIT 1"
    return catalogue.run(concept).first or catalogue.run(most_frequent).first


def test_every_page_of_real_results_opens(visit) -> None:
    catalogue, name = visit.catalogue, visit.name
    feature = best_feature(catalogue)
    traces = [row["trace"] for row in catalogue.ask("traces").rows]
    trace = "agreement" if "agreement" in traces else traces[0]
    root = next(row for row in catalogue.ask("graph_nodes", trace=trace).rows if row["kind"] == "feature")
    pages = {
        "overview": ("/", "#page .tile"),
        "dictionaries": ("/dictionaries", "#pareto .points path"),
        "features": (link("features", run=feature["run"], layer=feature["layer"]), ".ag-cell a"),
        "feature": (feature_link(**feature), "#feature-connections table"),
        "circuit": (link("circuits", trace=trace, node=root["node"]), "#circuit-about h3"),
        "sql": (link("sql", query="FROM metric ORDER BY run, layer"), "#sql-result .ag-cell"),
    }
    for page, (path, wait) in pages.items():
        visit.open(path, wait)
        visit.settle()
        assert visit.page.query_selector("#page :is(p, span).error") is None
        visit.screenshot(f"{name}-{page}", full_page=page not in ("feature", "circuit"))


def test_a_prompt_of_real_results_is_traced_and_edited(visit) -> None:
    prompt, target = PROMPTS[visit.name]
    feature = best_feature(visit.catalogue)
    edited = f"{feature['layer']}/{feature['feature']}"
    visit.open(
        link("try", prompt=prompt, target=target, features=edited, kind="ablate"), "#prompt-edited table"
    )
    visit.page.wait_for_selector("#circuit-graph svg", timeout=120_000)
    visit.settle()
    assert "relative error of the sums" in visit.text("#prompt-trace")
    visit.screenshot(f"{visit.name}-try", full_page=False)
