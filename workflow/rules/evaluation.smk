"""Evaluates on held-out tokens: the loss when dictionaries replace MLPs, ablation baselines, and concept scores."""

HELD_OUT = {"tokens": LAYOUT.tokens("validation"), "model": LAYOUT.model}

# only generated text has annotated concepts
ANNOTATED = STUDY.corpus.source == "chronicle"
CONCEPT_MATCHES = [LAYOUT.concept_matches(sweep) for sweep in STUDY.sweeps if ANNOTATED]
CONCEPT_MATCHES += [LAYOUT.concept_matches(None)] if ANNOTATED else []


rule ablate_site:
    input:
        **HELD_OUT,
    output:
        LAYOUT.baseline("{site}"),
    log:
        LAYOUT.log("ablate_{site}"),
    benchmark:
        LAYOUT.benchmark("ablate_{site}")
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
                LAYOUT.baseline(site)
                for site in sorted({run.site_out for run in runs})
            ],
        output:
            metric=evaluation_files(names, "metric", ["{layer}"]),
            histogram=evaluation_files(names, "density_histogram", ["{layer}"]),
        log:
            LAYOUT.log(f"evaluate_{sweep}_layer{{layer}}"),
        benchmark:
            LAYOUT.benchmark(f"evaluate_{sweep}_layer{{layer}}")
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
                baselines=[LAYOUT.baseline("mlp_out")],
            output:
                metric=evaluation_files(together_runs(runs), "metric", [-1]),
            log:
                LAYOUT.log(f"evaluate_{sweep}_together"),
            benchmark:
                LAYOUT.benchmark(f"evaluate_{sweep}_together")
            threads: split_cores(len(STUDY.sweeps))
            resources:
                **needs("evaluation", gpu=True),
            params:
                config=section("evaluation", "tokens", "batch", "mask"),
                runs=together_runs(runs),
                layers=STUDY.layers,
                dtype=MODEL_DTYPE,
                code=code("evaluation_score_all_layers"),
            script:
                "../../scripts/evaluation_score_all_layers.py"

    if ANNOTATED:

        rule:
            name:
                f"match_{sweep}"
            input:
                **HELD_OUT,
                concepts=LAYOUT.corpus_table("concept"),
                dictionaries=dictionary_folders(names, STUDY.layers),
            output:
                LAYOUT.concept_matches(sweep),
            log:
                LAYOUT.log(f"match_{sweep}"),
            benchmark:
                LAYOUT.benchmark(f"match_{sweep}")
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
        concepts=LAYOUT.corpus_table("concept"),
    output:
        LAYOUT.concept_matches(None),
    log:
        LAYOUT.log("compare_bases"),
    benchmark:
        LAYOUT.benchmark("compare_bases")
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
        feature_concept=CONCEPT_MATCHES,
    output:
        metric=LAYOUT.evaluation_table("metric"),
        histogram=LAYOUT.evaluation_table("density_histogram"),
        feature_concept=LAYOUT.evaluation_table("feature_concept"),
        concept_score=LAYOUT.evaluation_table("concept_score"),
        run=LAYOUT.evaluation_table("run"),
    log:
        LAYOUT.log("gather_evaluation"),
    benchmark:
        LAYOUT.benchmark("gather_evaluation")
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
        metric=LAYOUT.evaluation_table("metric"),
        run=LAYOUT.evaluation_table("run"),
    output:
        figure=report(
            LAYOUT.pareto_figure,
            caption="../report/pareto.rst",
            category="Evaluation",
        ),
        table=LAYOUT.evaluation_table("pareto"),
    log:
        LAYOUT.log("draw_pareto"),
    benchmark:
        LAYOUT.benchmark("draw_pareto")
    threads: 1
    resources:
        **needs("evaluation"),
    params:
        code=code("evaluation_draw"),
    script:
        "../../scripts/evaluation_draw.py"


TARGETS["evaluation"] = [
    LAYOUT.evaluation_table(table)
    for table in (
        "metric",
        "density_histogram",
        "feature_concept",
        "concept_score",
        "run",
    )
]
TARGETS["evaluation"] += [
    LAYOUT.baseline(site)
    for site in sorted({run.site_out for run in STUDY.runs.values()})
]
if any(run.site_out == "mlp_out" for run in STUDY.runs.values()):
    TARGETS["evaluation"] += [
        LAYOUT.pareto_figure,
        LAYOUT.evaluation_table("pareto"),
    ]
