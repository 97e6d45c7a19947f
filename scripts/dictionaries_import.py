from circuitloom.core.script import job

with job("dictionaries", snakemake):
    from pathlib import Path

    from circuitloom.config.dictionaries import Run
    from circuitloom.dictionaries.formats.transcoder_circuits import import_run
    from circuitloom.language_model.model import load_model

    params = snakemake.params
    model = load_model(snakemake.input.model, params.dtype)
    layer = int(snakemake.wildcards.layer)
    for run, output in zip(params.runs, snakemake.output, strict=True):
        import_run(Run.model_validate(run), layer, model, Path(output))
