from circuitloom.core.script import job

with job("plan", snakemake):
    from circuitloom.config import load_study
    from circuitloom.core.layout import Layout
    from circuitloom.plan import calibrate, check_disk, check_memory, describe, described, plan

    study = load_study(snakemake.params.config)
    machine = described(study.machine) if study.machine else calibrate(Layout.of(study.name).root)
    costs = plan(study, machine)
    print(*describe(study, costs, machine), sep="\n")
    check_disk(costs, machine)
    check_memory(costs, machine)
