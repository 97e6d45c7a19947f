from circuitloom.core.script import job

with job("report", snakemake):
    from pathlib import Path

    from circuitloom.report.write import ReportInputs, write_report

    source, params = snakemake.input, snakemake.params
    write_report(
        ReportInputs(
            folder=Path(source.catalog).parent,
            config=params.config,
            model=Path(source.model),
            tokens=[Path(folder) for folder in source.tokens],
            dictionaries=[Path(folder) for folder in source.dictionaries],
            results=[Path(file) for file in source.results],
            pictures=[Path(file) for file in source.pictures],
            case_runs=params.case_runs,
            benchmarks=Path(params.benchmarks),
            rule=snakemake.rule,
        ),
        Path(snakemake.output[0]),
    )
