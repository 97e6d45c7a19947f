from circuitloom.job import job

with job("cases", snakemake):
    from pathlib import Path

    from circuitloom.cases.difference.study import study_difference
    from circuitloom.cases.findings import write_findings
    from circuitloom.cases.opening import open_case
    from circuitloom.config.cases import DifferenceCase

    source, params = snakemake.input, snakemake.params
    opened = open_case(
        source.model, source.tokenizer, source.dictionaries, params.runs, params.context, params.dtype
    )
    case = DifferenceCase.model_validate(params.case)
    findings = study_difference(snakemake.wildcards.case, opened, case)
    write_findings(findings, Path(snakemake.output.result).parent)
