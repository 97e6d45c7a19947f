"""Estimated time, memory and disk of the study, printed before anything runs."""


rule plan:
    log:
        LAYOUT.log("plan"),
    localrule: True
    threads: split_cores(1)
    params:
        config=config,
    script:
        "../../scripts/plan_print.py"
