from circuitloom.core.script import job

with job("dictionaries", snakemake):
    from pathlib import Path

    from circuitloom.config.dictionaries import Run
    from circuitloom.dictionaries.formats.published import ImportJob, import_run
    from circuitloom.language_model.model import load_model

    params = snakemake.params
    validation = snakemake.input.get("validation")
    shared = ImportJob(
        layer=int(snakemake.wildcards.layer),
        model=load_model(snakemake.input.model, params.dtype),
        validation=Path(validation) if validation else None,
    )
    for run, commit, output in zip(params.runs, params.commits, snakemake.output, strict=True):
        import_run(Run.model_validate(run), shared, Path(output), commit)
