"""Writes feature tables with all activations on the held-out tokens. A job tabulates all runs of a sweep in one pass."""

TABULATION = {
    "tokens": LAYOUT.tokens("validation"),
    "tokenizer": LAYOUT.tokenizer,
    "model": LAYOUT.model,
}
TABULATED = [*STUDY.runs] + ([] if STUDY.features.neurons == 0 else [NEURONS])
TABULATION_KEYS = [key for key in section("features") if key != "neurons"]
TABULATION_JOBS = (len(STUDY.sweeps) + 1) * (1 if STUDY.grouped else len(STUDY.layers))


for sweep, runs in STUDY.sweeps.items():
    names = [run.name for run in runs]

    rule:
        name:
            f"tabulate_{sweep}"
        input:
            **TABULATION,
            dictionaries=dictionary_folders(names, JOB_LAYERS),
        output:
            [
                file
                for run in names
                for layer in JOB_LAYERS
                for file in feature_files(run, layer)
            ],
        log:
            LAYOUT.log(f"tabulate_{sweep}{OF_LAYER}"),
        benchmark:
            LAYOUT.benchmark(f"tabulate_{sweep}{OF_LAYER}")
        wildcard_constraints:
            layer=r"\d+",
        threads: split_cores(TABULATION_JOBS)
        resources:
            **needs("features", gpu=True),
        params:
            config=section("features", *TABULATION_KEYS),
            runs=names,
            layers=job_layers,
            dtype=MODEL_DTYPE,
            code=code("features_tabulate"),
        script:
            "../../scripts/features_tabulate.py"


rule tabulate_neurons:
    input:
        **TABULATION,
    output:
        [file for layer in JOB_LAYERS for file in feature_files(NEURONS, layer)],
    log:
        LAYOUT.log(f"tabulate_neurons{OF_LAYER}"),
    benchmark:
        LAYOUT.benchmark(f"tabulate_neurons{OF_LAYER}")
    wildcard_constraints:
        layer=r"\d+",
    threads: split_cores(TABULATION_JOBS)
    resources:
        **needs("features", gpu=True),
    params:
        config=section("features"),
        runs=[NEURONS],
        layers=job_layers,
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
