"""What tracing finds in a study's results."""

from circuitloom.attribution.tracer import most_traced_run
from circuitloom.core.tables import TRACE, write_table


def test_the_usual_run_is_the_one_that_most_prompts_were_traced_through(tmp_path) -> None:
    assert most_traced_run(tmp_path) is None
    for name, run in (("a", "tc-topk8-64"), ("b", "tc-topk16-64"), ("c", "tc-topk16-64")):
        row = dict.fromkeys(TRACE.columns) | {"trace": name, "run": run}
        (tmp_path / "circuits" / name).mkdir(parents=True)
        write_table(TRACE, [row], tmp_path / "circuits" / name / "trace.parquet")
    assert most_traced_run(tmp_path) == "tc-topk16-64"
