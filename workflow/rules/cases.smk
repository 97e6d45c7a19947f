"""Case studies, a job each: tables, pictures and a written result. A rule a kind."""


rule study_feature:
    input:
        model=f"{RESULTS}/model",
        tokenizer=f"{RESULTS}/corpus/tokenizer",
        tokens=f"{RESULTS}/corpus/validation.zarr",
        dictionaries=case_dictionaries,
        concepts=rules.label_concepts.output.concept,
    output:
        **case_outputs("feature"),
    log:
        f"{RESULTS}/logs/study_feature_{{case}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_feature_{{case}}.tsv"
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
        model=f"{RESULTS}/model",
        tokenizer=f"{RESULTS}/corpus/tokenizer",
        dictionaries=case_dictionaries,
    output:
        **case_outputs("greater_than"),
    log:
        f"{RESULTS}/logs/study_greater_than_{{case}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_greater_than_{{case}}.tsv"
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
        model=f"{RESULTS}/model",
        tokenizer=f"{RESULTS}/corpus/tokenizer",
        dictionaries=case_dictionaries,
    output:
        **case_outputs("difference"),
    log:
        f"{RESULTS}/logs/study_difference_{{case}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_difference_{{case}}.tsv"
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
        model=f"{RESULTS}/model",
        tokenizer=f"{RESULTS}/corpus/tokenizer",
        tokens=f"{RESULTS}/corpus/validation.zarr",
        dictionaries=case_dictionaries,
        concepts=rules.label_concepts.output.concept,
        matched=case_matches,
    output:
        **case_outputs("planted"),
    log:
        f"{RESULTS}/logs/study_planted_{{case}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/study_planted_{{case}}.tsv"
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


TARGETS["cases"] = case_targets()
