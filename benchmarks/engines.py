"""Time of four questions about a large study in DuckDB, Spark, ClickHouse, Polars and DataFusion.

    make .peers/{spark,clickhouse,polars,datafusion}/.installed
    python benchmarks/synthetic_features.py results/synthetic --activations 100_000_000
    python benchmarks/engines.py results/synthetic

Each engine runs in its environment, .peers/ENGINE, with the SQL of `circuitloom catalog`. An engine that is not
installed, fails or does not answer within `--limit` seconds is named and left out; Spark needs Java.
Features are of average density, another one each time. Peak memory is that of the engine's process, with the rows of
all answers; Spark's lacks its Java process.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

from circuitloom.catalog.engines.dialects import DIALECTS
from circuitloom.catalog.engines.generate import engine_script, portable_macros

SCRIPT = Path(__file__).resolve().parent / "peers" / "sql_engines.py"
ORDER = {macro.name: macro.order for macro in portable_macros()}
WANTED = ("word123 word", "word4567 ", " word50000")
"""Texts for `search`. Tokens of the synthetic text are ` word0` to ` word50256`."""


def questions(folder: Path, rounds: int) -> list[dict]:
    """Questions about features of average density of the first layer."""
    files = f"{folder}/features/*/layer0/feature.parquet"
    rows = duckdb.execute(
        "WITH f AS (FROM read_parquet(?)) SELECT run, feature FROM f ORDER BY abs(n_tokens - (SELECT avg(n_tokens) "
        "FROM f)), feature LIMIT ?",
        [files, rounds],
    ).fetchall()
    asked = []
    for macro in ("top_examples", "coactivation"):
        for run, feature in rows:
            values = {"of_run": run, "of_layer": 0, "of_feature": feature}
            asked.append({"macro": macro, "arguments": values, "order": ORDER[macro]})
    rate = {"macro": "firing_rates", "arguments": {"of_run": rows[0][0], "of_layer": 0}, "order": "feature"}
    asked += [rate] * rounds
    for number in range(rounds):
        wanted = {"wanted": WANTED[number % len(WANTED)]}
        asked.append({"macro": "search", "arguments": wanted, "order": ORDER["search"]})
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--engines", nargs="+", default=list(DIALECTS), choices=DIALECTS)
    parser.add_argument("--limit", type=int, default=3600, help="seconds for all questions to an engine")
    arguments = parser.parse_args()
    asked = questions(arguments.folder, arguments.rounds)
    reference: list[list] = []
    for engine in arguments.engines:
        python = (
            Path(sys.executable)
            if engine == "duckdb"
            else arguments.peers.absolute() / engine / "bin" / "python"
        )
        if not python.is_file():
            print(f"{engine}: not installed ({python})")
            continue
        if engine == "spark" and not (os.environ.get("JAVA_HOME") or shutil.which("java")):
            print("spark: no Java (apt-get install default-jre-headless)")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "catalog.sql"
            file.write_text(engine_script(engine, arguments.folder))
            command = [str(python), str(SCRIPT), engine, str(file), "--threads", str(arguments.threads)]
            try:
                done = subprocess.run(
                    command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True, cwd=scratch,
                    timeout=arguments.limit,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                print(f"\n{engine}: no answers in {arguments.limit} s", flush=True)
                continue
            except subprocess.CalledProcessError as error:
                # a negative status is a signal: -9 if the system ran out of memory
                print(f"\n{engine}: failed with status {error.returncode}", flush=True)
                continue
        result = json.loads(done.stdout.splitlines()[-1])
        found = [[row[:3] for row in answer["rows"]] for answer in result["answers"]]
        same = "" if not reference else "same rows" if found == reference else "OTHER ROWS"
        reference = reference or found
        print(
            f"\n{engine} {result['version']}: {result['opened']:.2f} s to open, peak {result['peak'] / 1e6:.0f} MB; "
            f"milliseconds: first, median {same}"
        )
        for start in range(0, len(asked), arguments.rounds):
            seconds = [answer["seconds"][0] for answer in result["answers"][start : start + arguments.rounds]]
            median = statistics.median(seconds[1:] or seconds)
            name = asked[start]["macro"]
            print(f"  {name:14} {seconds[0] * 1e3:9.1f} {median * 1e3:9.1f}", flush=True)


if __name__ == "__main__":
    main()
