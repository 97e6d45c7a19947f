"""One pass of the training tokens a site, all layers at once; and where each row comes from."""


rule index_rows:
    input:
        train=f"{RESULTS}/corpus/train.zarr",
    output:
        directory(f"{RESULTS}/activations/rows.zarr"),
    log:
        f"{RESULTS}/logs/index_rows.log",
    benchmark:
        f"{RESULTS}/benchmarks/index_rows.tsv"
    threads: 1
    resources:
        **needs("activations"),
    params:
        config=section("activations", "tokens", "shard_rows"),
        seed=STUDY.seed,
        code=code("activations_index"),
    script:
        "../../scripts/activations_index.py"


for site in STUDY.activations.sites:

    rule:
        name:
            f"cache_{site}"
        input:
            train=f"{RESULTS}/corpus/train.zarr",
            model=f"{RESULTS}/model",
        output:
            [directory(activation_folder(site, layer)) for layer in STUDY.layers],
        log:
            f"{RESULTS}/logs/cache_{site}.log",
        benchmark:
            f"{RESULTS}/benchmarks/cache_{site}.tsv"
        threads: split_cores(1)
        resources:
            **needs("activations", gpu=True),
        params:
            config=section("activations", "tokens", "dtype", "shard_rows", "batch"),
            site=site,
            seed=STUDY.seed,
            dtype=MODEL_DTYPE,
            code=code("activations_cache"),
        script:
            "../../scripts/activations_cache.py"


TARGETS["activations"] = [f"{RESULTS}/activations/rows.zarr"] + [
    activation_folder(site, layer)
    for site in STUDY.activations.sites
    for layer in STUDY.layers
]
