"""What the study will cost, printed before anything runs."""


rule plan:
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    threads: split_cores(1)
    params:
        config=config,
    script:
        "../../scripts/plan_print.py"
