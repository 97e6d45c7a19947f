from circuitloom.job import job

with job("plan", snakemake.threads, snakemake.log[0]):
    from pathlib import Path

    from circuitloom.config import load
    from circuitloom.machine import calibrate
    from circuitloom.plan import check_disk, plan
    from circuitloom.plan_page import describe

    study = load(snakemake.params.config)
    machine = calibrate(Path("results", study.profile))
    costs = plan(study, machine)
    print(*describe(study, costs, machine), sep="\n")
    check_disk(costs, machine)
