from circuitloom.job import job

with job("cases", snakemake):
    from pathlib import Path

    from circuitloom.cases.findings import write_findings
    from circuitloom.cases.greater_than.study import study_greater_than
    from circuitloom.cases.opening import open_case
    from circuitloom.config.cases import GreaterThanCase

    source, params = snakemake.input, snakemake.params
    opened = open_case(
        source.model, source.tokenizer, source.dictionaries, params.runs, params.context, params.dtype
    )
    case = GreaterThanCase.model_validate(params.case)
    findings = study_greater_than(snakemake.wildcards.case, opened, case)
    write_findings(findings, Path(snakemake.output.result).parent)
