from circuitloom.core.script import job

with job("activations", snakemake):
    from pathlib import Path

    from circuitloom.activations.shards import join_shards
    from circuitloom.core.checksums import remove_record

    parts = [Path(part) for part in snakemake.input]
    activations = Path(snakemake.output[0]).parents[1]
    join_shards(parts, activations)
    # they are about to be removed
    for part in parts:
        remove_record(activations.parent, part)
