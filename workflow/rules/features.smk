"""Every activation of every feature, tabulated: one pass of the held-out tokens a run and layer."""

TABULATION = {
    "tokens": f"{RESULTS}/corpus/validation.zarr",
    "tokenizer": f"{RESULTS}/corpus/tokenizer",
    "model": f"{RESULTS}/model",
}
TABULATED = [*STUDY.runs] + ([] if STUDY.features.neurons == 0 else [NEURONS])
TABULATION_KEYS = [key for key in section("features") if key != "neurons"]


rule tabulate_features:
    input:
        **TABULATION,
        dictionary=f"{RESULTS}/dictionaries/{{run}}/layer{{layer}}",
    output:
        feature_files("{run}", "{layer}"),
    log:
        f"{RESULTS}/logs/tabulate_features_{{run}}_layer{{layer}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_features_{{run}}_layer{{layer}}.tsv"
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
        f"{RESULTS}/logs/tabulate_neurons_layer{{layer}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_neurons_layer{{layer}}.tsv"
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
