from circuitloom.job import job

with job("plan", snakemake.threads, snakemake.log[0]):
    from pathlib import Path

    from circuitloom import plan
    from circuitloom.config import load
    from circuitloom.machine import calibrate

    study = load(snakemake.params.config)
    machine = calibrate(Path("results", study.profile))
    costs = plan.plan(study, machine)
    print(*plan.describe(study, costs, machine), sep="\n")
    plan.check_disk(costs, machine)
