"""Case studies. Each kind has one rule. Each case study is one job, which writes tables, pictures and result.md."""


rule study_feature:
    input:
        model=LAYOUT.model,
        tokenizer=LAYOUT.tokenizer,
        tokens=LAYOUT.tokens("validation"),
        dictionaries=case_dictionaries,
        concepts=rules.annotate_concepts.output.concept,
    output:
        **case_outputs("feature"),
    log:
        LAYOUT.log("study_feature_{case}"),
    benchmark:
        LAYOUT.benchmark("study_feature_{case}")
    wildcard_constraints:
        case=cases_of("feature"),
    threads: split_cores(len(STUDY.cases))
    resources:
        **needs("cases", gpu=True),
    params:
        **case_params("feature"),
        evaluation=section("evaluation"),
    script:
        "../../scripts/cases_feature.py"


rule study_greater_than:
    input:
        model=LAYOUT.model,
        tokenizer=LAYOUT.tokenizer,
        dictionaries=case_dictionaries,
    output:
        **case_outputs("greater_than"),
    log:
        LAYOUT.log("study_greater_than_{case}"),
    benchmark:
        LAYOUT.benchmark("study_greater_than_{case}")
    wildcard_constraints:
        case=cases_of("greater_than"),
    threads: split_cores(len(STUDY.cases))
    resources:
        **needs("cases", gpu=True),
    params:
        **case_params("greater_than"),
    script:
        "../../scripts/cases_greater_than.py"


rule study_difference:
    input:
        model=LAYOUT.model,
        tokenizer=LAYOUT.tokenizer,
        dictionaries=case_dictionaries,
    output:
        **case_outputs("difference"),
    log:
        LAYOUT.log("study_difference_{case}"),
    benchmark:
        LAYOUT.benchmark("study_difference_{case}")
    wildcard_constraints:
        case=cases_of("difference"),
    threads: split_cores(len(STUDY.cases))
    resources:
        **needs("cases", gpu=True),
    params:
        **case_params("difference"),
    script:
        "../../scripts/cases_difference.py"


rule study_planted:
    input:
        model=LAYOUT.model,
        tokenizer=LAYOUT.tokenizer,
        tokens=LAYOUT.tokens("validation"),
        dictionaries=case_dictionaries,
        concepts=rules.annotate_concepts.output.concept,
        matched=case_matches,
    output:
        **case_outputs("planted"),
    log:
        LAYOUT.log("study_planted_{case}"),
    benchmark:
        LAYOUT.benchmark("study_planted_{case}")
    wildcard_constraints:
        case=cases_of("planted"),
    threads: split_cores(len(STUDY.cases))
    resources:
        **needs("cases", gpu=True),
    params:
        **case_params("planted"),
        evaluation=section("evaluation"),
    script:
        "../../scripts/cases_planted.py"


rule study_compare:
    input:
        model=LAYOUT.model,
        tokenizer=LAYOUT.tokenizer,
        tokens=LAYOUT.tokens("validation"),
        dictionaries=case_dictionaries,
        metrics=rules.gather_evaluation.output.metric,
        concepts=case_concepts,
        matched=case_matches,
    output:
        **case_outputs("compare"),
    log:
        LAYOUT.log("study_compare_{case}"),
    benchmark:
        LAYOUT.benchmark("study_compare_{case}")
    wildcard_constraints:
        case=cases_of("compare"),
    threads: split_cores(len(STUDY.cases))
    resources:
        **needs("cases", gpu=True),
    params:
        **case_params("compare"),
        evaluation=section("evaluation"),
        circuits=section("circuits", "logits", "probability"),
    script:
        "../../scripts/cases_compare.py"


rule study_known_steps:
    output:
        **case_outputs("known_steps"),
    log:
        LAYOUT.log("study_known_steps_{case}"),
    benchmark:
        LAYOUT.benchmark("study_known_steps_{case}")
    wildcard_constraints:
        case=cases_of("known_steps"),
    threads: 1
    resources:
        **needs("cases"),
    params:
        case=lambda wildcards: STUDY.cases[wildcards.case].model_dump(mode="json"),
        code=code("cases_known_steps"),
    script:
        "../../scripts/cases_known_steps.py"


TARGETS["cases"] = case_targets()
