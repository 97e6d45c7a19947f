from circuitloom.job import job

with job("dictionaries", snakemake.threads, snakemake.log[0]):
    from pathlib import Path

    from circuitloom.config.dictionaries import Run
    from circuitloom.dictionaries.sweep import train_sweep
    from circuitloom.language_model.model import load

    params = snakemake.params
    runs = [Run.model_validate(run) for run in params.runs]
    model = load(snakemake.input.model, params.dtype)
    activations = Path(snakemake.input.activations[0]).parents[1]
    outputs = [Path(output) for output in snakemake.output]
    train_sweep(runs, int(snakemake.wildcards.layer), activations, model, outputs, params.code)
