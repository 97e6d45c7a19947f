"""One job a sweep and layer, its outputs the folders of the sweep's runs."""


def stored_sites(runs):
    """Sites whose stored activations the runs read; mlp_out is computed from mlp_in where it is not stored."""
    wanted = {site for run in runs for site in (run.site_in, run.site_out)}
    stored = set(STUDY.activations.sites)
    return sorted(site if site in stored else "mlp_in" for site in wanted)


for sweep, runs in STUDY.sweeps.items():

    rule:
        name:
            f"train_{sweep}"
        input:
            activations=[
                f"{RESULTS}/activations/{site}/layer{{layer}}.zarr"
                for site in stored_sites(runs)
            ],
            model=f"{RESULTS}/model",
        output:
            [
                directory(f"{RESULTS}/dictionaries/{run.name}/layer{{layer}}")
                for run in runs
            ],
        wildcard_constraints:
            layer=r"\d+",
        log:
            f"{RESULTS}/logs/train_{sweep}_layer{{layer}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/train_{sweep}_layer{{layer}}.tsv"
        threads: split_cores(len(STUDY.layers) * len(STUDY.sweeps))
        params:
            runs=[run.model_dump(mode="json") for run in runs],
            dtype=getattr(STUDY.language_model, "dtype", "float32"),
            code=code("dictionaries_train"),
        script:
            "../../scripts/dictionaries_train.py"


TARGETS["dictionaries"] = [
    f"{RESULTS}/dictionaries/{run.name}/layer{layer}"
    for run in STUDY.runs.values()
    for layer in STUDY.layers
]
