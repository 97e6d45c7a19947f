"""Estimates the time, memory and disk space that the study needs, and prints them before anything runs."""


rule plan:
    log:
        LAYOUT.log("plan"),
    localrule: True
    threads: split_cores(1)
    params:
        config=config,
    script:
        "../../scripts/plan_print.py"
