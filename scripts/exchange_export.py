from circuitloom.core.script import job

with job("exchange", snakemake):
    from pathlib import Path

    from circuitloom.exchange.export import export_run
    from circuitloom.exchange.stored_run import StoredRun

    params, wildcards = snakemake.params, snakemake.wildcards
    export_run(
        wildcards.format,
        StoredRun(Path(snakemake.input.model).parent, wildcards.run, params.layers),
        Path(snakemake.output[0]),
        license=params.license,
        model_name=params.model,
        version=params.code,
    )
