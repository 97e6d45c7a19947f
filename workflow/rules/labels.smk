"""Labels features by rules, each run in one job: descriptions of a layer are tried for the layers after it."""

LABELLED = TABULATED if STUDY.labels.runs is None else STUDY.labels.runs
LABEL_TABLES = ("feature", "activation", "logit")


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
        config=section("labels"),
        tokens=STUDY.features.tokens,
        run=lambda wildcards: wildcards.run,
        layers=STUDY.layers,
        code=code("labels_describe"),
    script:
        "../../scripts/labels_describe.py"


TARGETS["labels"] = [
    LAYOUT.labels("rules", run, layer) for run in LABELLED for layer in STUDY.layers
]
