from circuitloom.core.script import job

with job("cases", snakemake):
    from pathlib import Path

    from circuitloom.cases.case_report import write_report
    from circuitloom.cases.known_steps.study import study_known_steps
    from circuitloom.config.cases import KnownStepsCase

    case = KnownStepsCase.model_validate(snakemake.params.case)
    report = study_known_steps(snakemake.wildcards.case, case)
    write_report(report, Path(snakemake.output.result).parent)
