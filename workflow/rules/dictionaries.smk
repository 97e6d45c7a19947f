"""One job a sweep and layer, its outputs the folders of the sweep's runs."""

for sweep, runs in STUDY.sweeps.items():

    rule:
        name:
            f"train_{sweep}"
        input:
            activations=[
                activation_folder(site, "{layer}") for site in stored_sites(runs)
            ],
            model=f"{RESULTS}/model",
        output:
            [
                directory(f"{RESULTS}/dictionaries/{run.name}/layer{{layer}}")
                for run in runs
            ],
        log:
            f"{RESULTS}/logs/train_{sweep}_layer{{layer}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/train_{sweep}_layer{{layer}}.tsv"
        wildcard_constraints:
            layer=r"\d+",
        threads: split_cores(len(STUDY.layers) * len(STUDY.sweeps))
        params:
            runs=[run.model_dump(mode="json") for run in runs],
            dtype=MODEL_DTYPE,
            code=code("dictionaries_train"),
        script:
            "../../scripts/dictionaries_train.py"


TARGETS["dictionaries"] = [
    f"{RESULTS}/dictionaries/{run.name}/layer{layer}"
    for run in STUDY.runs.values()
    for layer in STUDY.layers
]
