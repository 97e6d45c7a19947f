"""One pass of the training tokens a site, all layers at once, by one job or several; and where each row comes from."""


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


CACHE_JOBS = STUDY.activations.jobs
CACHING = {
    "config": section("activations", "tokens", "dtype", "shard_rows", "batch", "jobs"),
    "seed": STUDY.seed,
    "dtype": MODEL_DTYPE,
    "code": code("activations_cache"),
}

for site in STUDY.activations.sites:
    if CACHE_JOBS == 1:

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
                **CACHING,
                site=site,
            script:
                "../../scripts/activations_cache.py"

    else:

        rule:
            name:
                f"cache_{site}_part"
            input:
                train=f"{RESULTS}/corpus/train.zarr",
                model=f"{RESULTS}/model",
            output:
                temp(
                    directory(
                        f"{RESULTS}/activations/parts/{site}/{{part}}of{CACHE_JOBS}"
                    )
                ),
            log:
                f"{RESULTS}/logs/cache_{site}_{{part}}of{CACHE_JOBS}.log",
            benchmark:
                f"{RESULTS}/benchmarks/cache_{site}_{{part}}of{CACHE_JOBS}.tsv"
            wildcard_constraints:
                part=r"\d+",
            threads: split_cores(CACHE_JOBS)
            resources:
                **needs("activations", gpu=True),
            params:
                **CACHING,
                site=site,
                layers=STUDY.layers,
            script:
                "../../scripts/activations_cache.py"

        rule:
            name:
                f"join_{site}"
            input:
                [
                    f"{RESULTS}/activations/parts/{site}/{part}of{CACHE_JOBS}"
                    for part in range(CACHE_JOBS)
                ],
            output:
                [directory(activation_folder(site, layer)) for layer in STUDY.layers],
            log:
                f"{RESULTS}/logs/join_{site}.log",
            benchmark:
                f"{RESULTS}/benchmarks/join_{site}.tsv"
            threads: 1
            resources:
                **needs("activations"),
            params:
                code=code("activations_join"),
            script:
                "../../scripts/activations_join.py"


TARGETS["activations"] = [f"{RESULTS}/activations/rows.zarr"] + [
    activation_folder(site, layer)
    for site in STUDY.activations.sites
    for layer in STUDY.layers
]
