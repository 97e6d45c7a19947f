"""Labels features by rules, each run in one job: descriptions of a layer are tried for the layers after it."""

# neurons, which have no dictionary, come last
LABELLED = sorted(
    TABULATED if STUDY.labels.runs is None else STUDY.labels.runs,
    key=lambda run: run == NEURONS,
)
LABEL_TABLES = ("feature", "activation", "logit")
RULE_KEYS = [key for key in section("labels") if key != "model"]
MODEL_LABELLED = STUDY.runs_labelled_by_model
MODEL_LABEL_TABLES = ("feature", "activation", "example", "logit")


rule describe_features:
    input:
        tokens=LAYOUT.tokens("validation"),
        tokenizer=LAYOUT.tokenizer,
        concept=LAYOUT.corpus_table("concept"),
        tables=[
            LAYOUT.feature_table("{run}", layer, table)
            for layer in STUDY.layers
            for table in LABEL_TABLES
        ],
        weights=label_weights,
    output:
        [LAYOUT.labels("rules", "{run}", layer) for layer in STUDY.layers],
    log:
        LAYOUT.log("describe_features_{run}"),
    benchmark:
        LAYOUT.benchmark("describe_features_{run}")
    wildcard_constraints:
        run="|".join(map(re.escape, LABELLED)) or "(?!)",
    threads: split_cores(len(LABELLED))
    resources:
        **needs("labels"),
    params:
        config=section("labels", *RULE_KEYS),
        tokens=STUDY.features.tokens,
        run=lambda wildcards: wildcards.run,
        layers=STUDY.layers,
        code=code("labels_describe"),
    script:
        "../../scripts/labels_describe.py"


# the only job that asks a language model, and the only one that uses the network for it
rule label_with_model:
    input:
        tokens=LAYOUT.tokens("validation"),
        tokenizer=LAYOUT.tokenizer,
        model=LAYOUT.model,
        tables=[
            LAYOUT.feature_table("{run}", "{layer}", table)
            for table in MODEL_LABEL_TABLES
        ],
        # neurons have no dictionary
        dictionary=lambda wildcards: dictionary_folders(
            [run for run in STUDY.runs if run == wildcards.run], ["{layer}"]
        ),
    output:
        LAYOUT.labels("model", "{run}", "{layer}"),
    log:
        LAYOUT.log("label_with_model_{run}_layer{layer}"),
    benchmark:
        LAYOUT.benchmark("label_with_model_{run}_layer{layer}")
    wildcard_constraints:
        run="|".join(map(re.escape, MODEL_LABELLED)) or "(?!)",
        layer=r"\d+",
    threads: split_cores(len(MODEL_LABELLED) * len(STUDY.layers))
    resources:
        **needs("labels", gpu=True),
    params:
        config=section("labels", "model")["model"],
        features=section("features", "tokens", "before", "after", "bands", "neurons"),
        dtype=STUDY.circuits.dtype,
        code=code("labels_ask"),
    script:
        "../../scripts/labels_ask.py"


TARGETS["labels"] = [
    LAYOUT.labels(maker, run, layer)
    for maker, runs in (("rules", LABELLED), ("model", MODEL_LABELLED))
    for run in runs
    for layer in STUDY.layers
]


if LABELLED:

    rule score_label_outputs:
        """Measures in the model what labels say about next tokens. A job of its own: labels are made without the model."""
        input:
            tokens=LAYOUT.tokens("validation"),
            tokenizer=LAYOUT.tokenizer,
            model=LAYOUT.model,
            labels=[
                LAYOUT.labels("rules", run, layer)
                for run in LABELLED
                for layer in JOB_LAYERS
            ],
            activations=[
                LAYOUT.feature_table(run, layer, "activation")
                for run in LABELLED
                for layer in JOB_LAYERS
            ],
            dictionaries=dictionary_folders(
                [run for run in LABELLED if run != NEURONS], JOB_LAYERS
            ),
        output:
            [
                LAYOUT.label_outputs(run, layer)
                for run in LABELLED
                for layer in JOB_LAYERS
            ],
        log:
            LAYOUT.log(f"score_label_outputs{OF_LAYER}"),
        benchmark:
            LAYOUT.benchmark(f"score_label_outputs{OF_LAYER}")
        wildcard_constraints:
            layer=r"\d+",
        threads: split_cores(1 if STUDY.grouped else len(STUDY.layers))
        resources:
            **needs("labels", gpu=True),
        params:
            runs=LABELLED,
            layers=job_layers,
            features=section("features", "tokens", "neurons"),
            dtype=STUDY.circuits.dtype,
            code=code("labels_score_outputs"),
        script:
            "../../scripts/labels_score_outputs.py"


TARGETS["labels"] += [
    LAYOUT.label_outputs(run, layer) for run in LABELLED for layer in STUDY.layers
]


if STUDY.circuits.prompts:

    rule draw_circuits:
        """Draws all traced prompts, with labels. A job of its own, so that new labels trace nothing again."""
        input:
            tables=[
                LAYOUT.trace(trace) / f"{table}.parquet"
                for trace in STUDY.circuits.prompts
                for table in ("trace", "node", "edge")
            ],
            labels=lambda wildcards: label_files(
                set(map(traced_run, STUDY.circuits.prompts))
            ),
        output:
            [
                report(
                    LAYOUT.trace(trace) / "graph.png",
                    caption="../report/circuit.rst",
                    category="Circuits",
                    subcategory=trace,
                )
                for trace in STUDY.circuits.prompts
            ],
        log:
            LAYOUT.log("draw_circuits"),
        benchmark:
            LAYOUT.benchmark("draw_circuits")
        threads: 1
        resources:
            **needs("labels"),
        params:
            layers=STUDY.shape.layers,
            code=code("circuits_draw"),
        script:
            "../../scripts/circuits_draw.py"


TARGETS["labels"] += [
    LAYOUT.trace(trace) / "graph.png" for trace in STUDY.circuits.prompts
]
