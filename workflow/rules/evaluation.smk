"""Evaluates on held-out tokens: the loss when dictionaries replace MLPs, ablation baselines, and concept scores."""

HELD_OUT = {"tokens": LAYOUT.tokens("validation"), "model": LAYOUT.model}

# only generated text has annotated concepts
ANNOTATED = STUDY.corpus.generated
CONCEPT_MATCHES = [
    LAYOUT.concept_matches(sweep) for sweep in (*STUDY.sweeps, None) if ANNOTATED
]


ABLATED = sorted({run.site_out for run in STUDY.runs.values()})
READS = {
    site: sorted({run.reads for run in STUDY.runs.values() if run.site_out == site})
    for site in ABLATED
}


rule ablate_sites:
    input:
        **HELD_OUT,
    output:
        [LAYOUT.baseline(site) for site in ABLATED],
    log:
        LAYOUT.log("ablate_sites"),
    benchmark:
        LAYOUT.benchmark("ablate_sites")
    threads: split_cores(len(STUDY.sweeps) + 1)
    resources:
        **needs("evaluation", gpu=True),
    params:
        config=section("evaluation", "tokens", "batch", "mask", "together"),
        sites=READS,
        layers=STUDY.layers,
        outliers=section("activations")["outliers"],
        dtype=MODEL_DTYPE,
        code=code("evaluation_ablate"),
    script:
        "../../scripts/evaluation_ablate.py"


for sweep, runs in STUDY.sweeps.items():
    names = [run.name for run in runs]
    layers = scored_layers(runs)
    together = together_runs(runs) if layers == STUDY.layers else []

    rule:
        name:
            f"evaluate_{sweep}"
        input:
            **HELD_OUT,
            dictionaries=dictionary_folders(names, layers),
            baselines=[
                LAYOUT.baseline(site)
                for site in sorted({run.site_out for run in runs})
            ],
        output:
            metric=evaluation_files(names, "metric", layers),
            histogram=evaluation_files(names, "density_histogram", layers),
            together=evaluation_files(together, "metric", [-1]),
        log:
            LAYOUT.log(f"evaluate_{sweep}{of_layer(layers)}"),
        benchmark:
            LAYOUT.benchmark(f"evaluate_{sweep}{of_layer(layers)}")
        wildcard_constraints:
            layer=r"\d+",
        threads: split_cores(len(STUDY.sweeps if STUDY.grouped else STUDY.layers))
        resources:
            **needs("evaluation", gpu=True),
        params:
            config=section("evaluation", "tokens", "batch", "mask"),
            runs=names,
            layers=lambda wildcards, layers=layers: layers_of_job(layers, wildcards),
            together=together,
            dtype=MODEL_DTYPE,
            code=code("evaluation_score"),
        script:
            "../../scripts/evaluation_score.py"


if not STUDY.grouped:

    rule evaluate_together:
        input:
            **HELD_OUT,
            # the dictionaries of all layers of several runs may not fit into memory
            dictionaries=dictionary_folders(["{run}"], STUDY.layers),
            baselines=lambda wildcards: [
                LAYOUT.baseline(STUDY.runs[wildcards.run].site_out)
            ],
        output:
            together=[LAYOUT.run_evaluation("{run}", -1, "metric")],
        log:
            LAYOUT.log("evaluate_together_{run}"),
        benchmark:
            LAYOUT.benchmark("evaluate_together_{run}")
        wildcard_constraints:
            run="|".join(
                re.escape(name)
                for name, run in STUDY.runs.items()
                if not run.is_cross_layer
            )
            or "(?!)",
        threads: split_cores(len(STUDY.layers))
        resources:
            **needs("evaluation", gpu=True),
        params:
            config=section("evaluation", "tokens", "batch", "mask"),
            runs=lambda wildcards: [wildcards.run],
            layers=STUDY.layers,
            together=lambda wildcards: [wildcards.run],
            dtype=MODEL_DTYPE,
            code=code("evaluation_score"),
        script:
            "../../scripts/evaluation_score.py"


if ANNOTATED:

    rule match_concepts:
        input:
            **HELD_OUT,
            concepts=LAYOUT.corpus_table("concept"),
            dictionaries=dictionary_folders(STUDY.runs, STUDY.layers),
        output:
            dictionaries=[LAYOUT.concept_matches(sweep) for sweep in STUDY.sweeps],
            bases=LAYOUT.concept_matches(None),
        log:
            LAYOUT.log("match_concepts"),
        benchmark:
            LAYOUT.benchmark("match_concepts")
        # a case study waits for it
        priority: 1
        threads: split_cores(len(STUDY.sweeps) + 1)
        resources:
            **needs("evaluation", gpu=True),
        params:
            config=section("evaluation", "tokens", "batch", "mask", "thresholds"),
            sweeps={
                sweep: [run.name for run in runs]
                for sweep, runs in STUDY.sweeps.items()
            },
            layers=STUDY.layers,
            dtype=MODEL_DTYPE,
            code=code("evaluation_match"),
        script:
            "../../scripts/evaluation_match.py"


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
TARGETS["evaluation"] += [LAYOUT.baseline(site) for site in ABLATED]
if any(run.site_out in MLP_OUTPUTS for run in STUDY.runs.values()):
    TARGETS["evaluation"] += [
        LAYOUT.pareto_figure,
        LAYOUT.evaluation_table("pareto"),
    ]
