from circuitloom.core.script import job

with job("catalog", snakemake):
    from pathlib import Path

    from circuitloom.catalog.build import build_catalog

    build_catalog(Path(snakemake.output[0]).parent)
