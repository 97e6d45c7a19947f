"""Dictionaries scored on held-out tokens: in place of MLPs, against ablations, and by concept."""

HELD_OUT = {"tokens": f"{RESULTS}/corpus/validation.zarr", "model": f"{RESULTS}/model"}

# a corpus of real text has no labelled concepts
LABELLED = STUDY.corpus.source == "chronicle"
CONCEPT_FEATURES = [
    f"{EVALUATION}/concept/{sweep}/feature_concept.parquet"
    for sweep in STUDY.sweeps
    if LABELLED
]
CONCEPT_FEATURES += [f"{EVALUATION}/basis/feature_concept.parquet"] if LABELLED else []


rule ablate_site:
    input:
        **HELD_OUT,
    output:
        baseline_file("{site}"),
    log:
        f"{RESULTS}/logs/ablate_{{site}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablate_{{site}}.tsv"
    threads: split_cores(len(STUDY.layers))
    resources:
        **needs("evaluation", gpu=True),
    params:
        config=section("evaluation", "tokens", "batch", "mask", "together"),
        layers=STUDY.layers,
        dtype=MODEL_DTYPE,
        code=code("evaluation_ablate"),
    script:
        "../../scripts/evaluation_ablate.py"


for sweep, runs in STUDY.sweeps.items():
    names = [run.name for run in runs]

    rule:
        name:
            f"evaluate_{sweep}"
        input:
            **HELD_OUT,
            dictionaries=dictionary_folders(names, ["{layer}"]),
            baselines=[
                baseline_file(site) for site in sorted({run.site_out for run in runs})
            ],
        output:
            metric=evaluation_files(names, "metric", ["{layer}"]),
            histogram=evaluation_files(names, "density_histogram", ["{layer}"]),
        log:
            f"{RESULTS}/logs/evaluate_{sweep}_layer{{layer}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/evaluate_{sweep}_layer{{layer}}.tsv"
        wildcard_constraints:
            layer=r"\d+",
        threads: split_cores(len(STUDY.layers))
        resources:
            **needs("evaluation", gpu=True),
        params:
            config=section("evaluation", "tokens", "batch", "mask"),
            runs=names,
            dtype=MODEL_DTYPE,
            code=code("evaluation_score"),
        script:
            "../../scripts/evaluation_score.py"

    if together_runs(runs):

        rule:
            name:
                f"evaluate_{sweep}_together"
            input:
                **HELD_OUT,
                dictionaries=dictionary_folders(together_runs(runs), STUDY.layers),
                baselines=[baseline_file("mlp_out")],
            output:
                metric=evaluation_files(together_runs(runs), "metric", [-1]),
            log:
                f"{RESULTS}/logs/evaluate_{sweep}_together.log",
            benchmark:
                f"{RESULTS}/benchmarks/evaluate_{sweep}_together.tsv"
            threads: split_cores(len(STUDY.sweeps))
            resources:
                **needs("evaluation", gpu=True),
            params:
                config=section("evaluation", "tokens", "batch", "mask"),
                runs=together_runs(runs),
                layers=STUDY.layers,
                dtype=MODEL_DTYPE,
                code=code("evaluation_score_together"),
            script:
                "../../scripts/evaluation_score_together.py"

    if LABELLED:

        rule:
            name:
                f"match_{sweep}"
            input:
                **HELD_OUT,
                concepts=f"{RESULTS}/corpus/concept.parquet",
                dictionaries=dictionary_folders(names, STUDY.layers),
            output:
                f"{EVALUATION}/concept/{sweep}/feature_concept.parquet",
            log:
                f"{RESULTS}/logs/match_{sweep}.log",
            benchmark:
                f"{RESULTS}/benchmarks/match_{sweep}.tsv"
            threads: split_cores(len(STUDY.sweeps) + 1)
            resources:
                **needs("evaluation", gpu=True),
            params:
                config=section("evaluation", "tokens", "batch", "mask", "thresholds"),
                runs=names,
                layers=STUDY.layers,
                dtype=MODEL_DTYPE,
                code=code("evaluation_match"),
            script:
                "../../scripts/evaluation_match.py"


rule compare_bases:
    input:
        **HELD_OUT,
        concepts=f"{RESULTS}/corpus/concept.parquet",
    output:
        f"{EVALUATION}/basis/feature_concept.parquet",
    log:
        f"{RESULTS}/logs/compare_bases.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_bases.tsv"
    threads: split_cores(len(STUDY.sweeps) + 1)
    resources:
        **needs("evaluation", gpu=True),
    params:
        config=section("evaluation", "tokens", "batch", "mask", "thresholds"),
        layers=STUDY.layers,
        dtype=MODEL_DTYPE,
        code=code("evaluation_match_bases"),
    script:
        "../../scripts/evaluation_match_bases.py"


rule gather_evaluation:
    input:
        metric=evaluation_files(STUDY.runs, "metric", STUDY.layers)
        + evaluation_files(together_runs(STUDY.runs.values()), "metric", [-1]),
        histogram=evaluation_files(STUDY.runs, "density_histogram", STUDY.layers),
        feature_concept=CONCEPT_FEATURES,
    output:
        metric=f"{EVALUATION}/metric.parquet",
        histogram=f"{EVALUATION}/density_histogram.parquet",
        feature_concept=f"{EVALUATION}/feature_concept.parquet",
        concept_score=f"{EVALUATION}/concept_score.parquet",
        run=f"{EVALUATION}/run.parquet",
    log:
        f"{RESULTS}/logs/gather_evaluation.log",
    benchmark:
        f"{RESULTS}/benchmarks/gather_evaluation.tsv"
    threads: 1
    resources:
        **needs("evaluation"),
    params:
        runs=[run.model_dump(mode="json") for run in STUDY.runs.values()],
        bases={"d_model": STUDY.shape.d_model, "d_mlp": STUDY.shape.d_mlp},
        code=code("evaluation_gather"),
    script:
        "../../scripts/evaluation_gather.py"


rule draw_pareto:
    input:
        metric=f"{EVALUATION}/metric.parquet",
        run=f"{EVALUATION}/run.parquet",
    output:
        figure=report(
            f"{EVALUATION}/pareto.png",
            caption="../report/pareto.rst",
            category="Evaluation",
        ),
        table=f"{EVALUATION}/pareto.parquet",
    log:
        f"{RESULTS}/logs/draw_pareto.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_pareto.tsv"
    threads: 1
    resources:
        **needs("evaluation"),
    params:
        code=code("evaluation_draw"),
    script:
        "../../scripts/evaluation_draw.py"


TARGETS["evaluation"] = [
    f"{EVALUATION}/{table}.parquet"
    for table in (
        "metric",
        "density_histogram",
        "feature_concept",
        "concept_score",
        "run",
    )
]
TARGETS["evaluation"] += [
    baseline_file(site)
    for site in sorted({run.site_out for run in STUDY.runs.values()})
]
if any(run.site_out == "mlp_out" for run in STUDY.runs.values()):
    TARGETS["evaluation"] += [
        f"{EVALUATION}/pareto.png",
        f"{EVALUATION}/pareto.parquet",
    ]
