from circuitloom.core.script import job

with job("dictionaries", snakemake):
    from pathlib import Path

    from circuitloom.dictionaries.training.launch import TrainingJob, run_job

    params = snakemake.params
    training = TrainingJob(
        runs=params.runs,
        layers=params.layers,
        activations=Path(snakemake.input.activations[0]).parents[1],
        model=snakemake.input.model,
        dtype=params.dtype,
        outputs=list(snakemake.output),
        version=params.code,
        outliers=params.outliers,
    )
    run_job(training, snakemake.threads)
