"""Time of the explorer's pages: on the server, and until a browser paints.

    python benchmarks/explorer.py results/synthetic --make 100_000   # first generate tables of 100,000 features
    python benchmarks/explorer.py results/synthetic results/quickstart

A page's server time is the sum over its callbacks, from the Server-Timing header of the responses. Needs Chromium.
"""

import argparse
import shutil
import statistics
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import synthetic_features
from playwright.sync_api import sync_playwright

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.core.tables import (
    CONNECTION,
    DEEMBEDDING,
    FEATURE_CONCEPT,
    LOGIT,
    METRIC,
    PARETO,
    RUN,
    Table,
    write_table,
)
from circuitloom.explorer.app import HOST, start
from circuitloom.explorer.urls import feature_link, link

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
EACH = 10
"""Tokens per sign and path, and connections per sign: the numbers that the workflow keeps."""


def write(table: Table, path: Path, columns: dict[str, Any], rows: int) -> None:
    """Write a table; a column is an array, one value for all rows, or null if it is missing."""
    arrays = []
    for field in table.schema:
        value = columns.get(field.name)
        is_array = isinstance(value, np.ndarray | pa.Array)
        array = pa.array(value) if is_array else pa.repeat(pa.scalar(value, type=field.type), rows)
        arrays.append(array.cast(field.type))
    write_table(table, pa.table(arrays, names=table.schema.names), path)


def make(folder: Path, width: int, activations: int) -> None:
    """Generate a study of `width` features in one layer, with tables as large as the workflow's."""
    run, random = synthetic_features.run_name(width), np.random.default_rng(0)
    words = pa.array([f" word{number}" for number in range(50_257)])
    one = {
        "run": run,
        "kind": "transcoder",
        "site_in": "mlp_in",
        "site_out": "mlp_out",
        "act": "topk",
        "width": width,
    }
    write(RUN, folder / "evaluation" / "run.parquet", {**one, "k": 32, "config": "{}"}, 1)
    for table in (METRIC, PARETO):
        numbers = {name: 0.5 for name, (kind, _) in table.columns.items() if kind == pa.float64()}
        columns = {**one, **numbers, "layer": np.array([-1, 0])}
        known = {name: value for name, value in columns.items() if name in table.columns}
        write(table, folder / "evaluation" / f"{table.name}.parquet", known, 2)
    features, weights = (folder / part / run / "layer0" for part in ("features", "circuits/weights"))
    # keep existing feature tables: they take longest
    if not (features / "feature.parquet").is_file():
        tokens = synthetic_features.make_tokens(folder / "corpus", round(activations / 32 / 127))
        synthetic_features.make_layer(folder, tokens, 0, width)
    at = {"run": run, "layer": 0}

    def token_columns(paths: int) -> tuple[dict[str, Any], int]:
        n = width * paths * EACH
        number, token = np.arange(n), random.integers(0, 50_257, n)
        rest = {"rank": number % EACH, "sign": 1 - 2 * (number // EACH % 2), "token_id": token, "effect": 0.5}
        return {**at, "feature": number // (paths * EACH), "token": words.take(pa.array(token)), **rest}, n

    columns, n = token_columns(2)
    write(LOGIT, features / "logit.parquet", columns, n)
    columns, n = token_columns(6)
    via = pa.array(["direct", "layer0", "head 0.1"]).take(pa.array(np.arange(n) // (2 * EACH) % 3))
    write(DEEMBEDDING, weights / "deembedding.parquet", {**columns, "via": via}, n)
    n = 2 * EACH * width
    connected = {"feature": np.arange(n) // (2 * EACH), "rank": np.arange(n) % EACH, "via": "direct"}
    source = {
        "source_layer": 0,
        "source_feature": random.integers(0, width, n),
        "weight": random.normal(size=n),
    }
    effect = {
        "mean_effect": random.normal(size=n),
        "mean_effect_when_active": random.normal(size=n),
        "n_active": 9,
    }
    write(CONNECTION, weights / "connection.parquet", {**at, **connected, **source, **effect}, n)
    concepts = pa.array([f"concept{number % 75}" for number in range(750)])
    scored = {
        "concept": concepts,
        "feature": random.integers(0, width, 750),
        "f1": random.random(750),
        "rank": 0,
    }
    write(FEATURE_CONCEPT, folder / "evaluation" / "feature_concept.parquet", {**at, **scored}, 750)
    build_catalog(folder)


def addresses(folder: Path) -> dict[str, str]:
    """Name to address of a page of each kind, for the feature of average density of the largest run."""
    catalogue = CatalogClient(folder)
    largest = max(
        catalogue.ask("tabulated").rows,
        key=lambda row: (row["run"] != "neurons", row["layer"], row["n_features"]),
    )
    run, layer = largest["run"], largest["layer"]
    average = catalogue.run(
        f"SELECT feature, n_tokens FROM feature WHERE run = '{run}' AND layer = {layer} ORDER BY "
        f"abs(n_tokens - (SELECT avg(n_tokens) FROM feature WHERE run = '{run}' AND layer = {layer})) LIMIT 1"
    ).first
    print(f"{folder.name}: {largest['n_features']:,} features in {run}, layer {layer}; the feature fires on "
          f"{average['n_tokens']:,} tokens")  # fmt: skip
    pages = {
        "overview": "/",
        "dictionaries": "/dictionaries",
        "features": link("features", run=run, layer=layer),
        "features, sorted and filtered": link(
            "features", run=run, layer=layer, sort='[{"colId":"density","sort":"desc"}]',
            filter='{"max_activation":{"filterType":"number","type":"greaterThan","filter":1}}',
        ),
        "features, searched": link("features", run=run, layer=layer, search="word77|year"),
        "one feature": feature_link(run, layer, average["feature"]),
        "circuits": "/circuits",
        "try (empty form)": "/try",
        "SQL": link("sql", query=f"SELECT * FROM feature WHERE run = '{run}' ORDER BY density DESC LIMIT 100"),
    }  # fmt: skip
    return pages


def visit(browser: Any, address: str) -> dict[str, float]:
    """Milliseconds of one visit in a new page, with a warm browser cache."""
    page = browser.new_page()
    server_times: list[float] = []

    def on_response(response: Any) -> None:
        if "_dash-update-component" in response.url:
            server_times.append(float(response.headers["server-timing"].split("dur=")[1]))

    page.on("response", on_response)
    page.goto(address)
    page.wait_for_selector("#page > *")
    content = page.evaluate("performance.now()")
    page.wait_for_load_state("networkidle")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.close()
    return {
        "server": sum(server_times),
        "slowest response": max(server_times),
        "first paint": paint,
        "content": content,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument(
        "--make", type=int, help="generate a study with this number of features in the first folder"
    )
    parser.add_argument("--activations", type=int, default=20_000_000, help="of the generated study")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.folders[0], arguments.make, arguments.activations)
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        for folder in arguments.folders:
            server = start(folder, 0)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for name, path in addresses(folder).items():
                visits = [
                    visit(context, f"http://{HOST}:{server.port}{path}") for _ in range(arguments.rounds + 1)
                ]
                # the first visit fills the caches
                figures = {key: statistics.median(v[key] for v in visits[1:]) for key in visits[0]}
                worst = max(v["server"] for v in visits[1:])
                line = "".join(f"{key} {value:6.0f} ms  " for key, value in figures.items())
                print(
                    f"{name:32}{line}server at worst {worst:6.0f}, first {visits[0]['server']:6.0f}",
                    flush=True,
                )
            server.shutdown()
        browser.close()


if __name__ == "__main__":
    main()
