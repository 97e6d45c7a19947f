from circuitloom.core.script import job

with job("cases", snakemake):
    from pathlib import Path

    from circuitloom.cases.case_report import write_report
    from circuitloom.cases.context import open_context
    from circuitloom.cases.greater_than.study import study_greater_than
    from circuitloom.config.cases import GreaterThanCase

    source, params = snakemake.input, snakemake.params
    context = open_context(
        source.model, source.tokenizer, source.dictionaries, params.runs, params.context, params.dtype
    )
    case = GreaterThanCase.model_validate(params.case)
    report = study_greater_than(snakemake.wildcards.case, context, case)
    write_report(report, Path(snakemake.output.result).parent)
