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
    params:
        **case_params("feature"),
        evaluation=section("evaluation"),
    script:
        "../../scripts/cases_feature.py"


TARGETS["cases"] = case_targets()
