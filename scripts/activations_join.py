from circuitloom.core.script import job

with job("activations", snakemake):
    from pathlib import Path

    from circuitloom.activations.shards import join_shards
    from circuitloom.core.checksums import remove_record

    job_folders = [Path(folder) for folder in snakemake.input]
    activations = Path(snakemake.output[0]).parents[1]
    join_shards(job_folders, activations)
    # Snakemake removes the job folders after this script, because they are temporary outputs
    for job_folder in job_folders:
        remove_record(activations.parent, job_folder)
