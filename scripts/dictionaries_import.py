from circuitloom.core.script import job

with job("dictionaries", snakemake):
    from pathlib import Path

    from circuitloom.config.dictionaries import Run
    from circuitloom.dictionaries.formats.published import ImportJob, import_run
    from circuitloom.dictionaries.formats.published_cross_layer import import_cross_layer_run
    from circuitloom.language_model.model import load_model

    params = snakemake.params
    model = load_model(snakemake.input.model, params.dtype)
    validation = snakemake.input.get("validation")
    validation = Path(validation) if validation else None
    outputs, n = list(map(Path, snakemake.output)), len(params.layers)
    for number, (keys, commit) in enumerate(zip(params.runs, params.commits, strict=True)):
        run, folders = Run.model_validate(keys), outputs[number * n : (number + 1) * n]
        if run.is_cross_layer:
            layers = dict(zip(params.layers, folders, strict=True))
            import_cross_layer_run(run, model, validation, layers, commit)
        else:
            import_run(run, ImportJob(params.layers[0], model, validation), folders[0], commit)
