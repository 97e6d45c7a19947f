from circuitloom.core.script import job

with job("dictionaries", snakemake):
    from pathlib import Path

    from circuitloom.dictionaries.training.launch import Job, run

    params = snakemake.params
    work = Job(
        runs=params.runs,
        layer=int(snakemake.wildcards.layer),
        activations=Path(snakemake.input.activations[0]).parents[1],
        model=snakemake.input.model,
        dtype=params.dtype,
        outputs=list(snakemake.output),
        version=params.code,
    )
    run(work, snakemake.threads)
