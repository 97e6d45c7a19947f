"""Writes feature tables with all activations on the held-out tokens. There is one job for each run and layer."""

TABULATION = {
    "tokens": LAYOUT.tokens("validation"),
    "tokenizer": LAYOUT.tokenizer,
    "model": LAYOUT.model,
}
TABULATED = [*STUDY.runs] + ([] if STUDY.features.neurons == 0 else [NEURONS])
TABULATION_KEYS = [key for key in section("features") if key != "neurons"]


rule tabulate_features:
    input:
        **TABULATION,
        dictionary=LAYOUT.dictionary("{run}", "{layer}"),
    output:
        feature_files("{run}", "{layer}"),
    log:
        LAYOUT.log("tabulate_features_{run}_layer{layer}"),
    benchmark:
        LAYOUT.benchmark("tabulate_features_{run}_layer{layer}")
    wildcard_constraints:
        run="|".join(map(re.escape, STUDY.runs)),
        layer=r"\d+",
    threads: split_cores(len(TABULATED) * len(STUDY.layers))
    resources:
        **needs("features", gpu=True),
    params:
        config=section("features", *TABULATION_KEYS),
        dtype=MODEL_DTYPE,
        code=code("features_tabulate"),
    script:
        "../../scripts/features_tabulate.py"


rule tabulate_neurons:
    input:
        **TABULATION,
    output:
        feature_files(NEURONS, "{layer}"),
    log:
        LAYOUT.log("tabulate_neurons_layer{layer}"),
    benchmark:
        LAYOUT.benchmark("tabulate_neurons_layer{layer}")
    wildcard_constraints:
        layer=r"\d+",
    threads: split_cores(len(TABULATED) * len(STUDY.layers))
    resources:
        **needs("features", gpu=True),
    params:
        config=section("features"),
        run=NEURONS,
        dtype=MODEL_DTYPE,
        code=code("features_tabulate"),
    script:
        "../../scripts/features_tabulate.py"


TARGETS["features"] = [
    file
    for run in TABULATED
    for layer in STUDY.layers
    for file in feature_files(run, layer)
]
