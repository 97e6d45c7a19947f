from circuitloom.job import job

with job("catalog", snakemake.threads, snakemake.log[0]):
    from pathlib import Path

    from circuitloom.catalog.build import build_catalog

    build_catalog(Path(snakemake.output[0]).parent)
