"""Caches activations. For each site, one pass over the training tokens caches all layers, in one or several jobs."""


rule index_rows:
    input:
        train=LAYOUT.tokens("train"),
    output:
        directory(LAYOUT.row_order),
    log:
        LAYOUT.log("index_rows"),
    benchmark:
        LAYOUT.benchmark("index_rows")
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
                train=LAYOUT.tokens("train"),
                model=LAYOUT.model,
            output:
                [
                    directory(LAYOUT.activation_layer(site, layer))
                    for layer in STUDY.layers
                ],
            log:
                LAYOUT.log(f"cache_{site}"),
            benchmark:
                LAYOUT.benchmark(f"cache_{site}")
            # all dictionaries wait for it
            priority: 2
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
                train=LAYOUT.tokens("train"),
                model=LAYOUT.model,
            output:
                temp(directory(LAYOUT.activation_part(site, "{part}", CACHE_JOBS))),
            log:
                LAYOUT.log(f"cache_{site}_{{part}}of{CACHE_JOBS}"),
            benchmark:
                LAYOUT.benchmark(f"cache_{site}_{{part}}of{CACHE_JOBS}")
            wildcard_constraints:
                part=r"\d+",
            priority: 2
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
                    LAYOUT.activation_part(site, part, CACHE_JOBS)
                    for part in range(CACHE_JOBS)
                ],
            output:
                [
                    directory(LAYOUT.activation_layer(site, layer))
                    for layer in STUDY.layers
                ],
            log:
                LAYOUT.log(f"join_{site}"),
            benchmark:
                LAYOUT.benchmark(f"join_{site}")
            threads: 1
            resources:
                **needs("activations"),
            params:
                code=code("activations_join"),
            script:
                "../../scripts/activations_join.py"


CACHED = [
    LAYOUT.activation_layer(site, layer)
    for site in STUDY.activations.sites
    for layer in STUDY.layers
]


rule measure_norms:
    input:
        CACHED,
        rows=LAYOUT.row_order,
        train=LAYOUT.tokens("train"),
        tokenizer=LAYOUT.tokenizer,
    output:
        LAYOUT.activation_norms,
    log:
        LAYOUT.log("measure_norms"),
    benchmark:
        LAYOUT.benchmark("measure_norms")
    threads: 1
    resources:
        **needs("activations"),
    params:
        sites=STUDY.activations.sites,
        layers=STUDY.layers,
        above=STUDY.activations.outliers.above,
        code=code("activations_measure"),
    script:
        "../../scripts/activations_measure.py"


# without it, the catalogue of imported dictionaries needs no cached activations
NORMS = (
    [LAYOUT.activation_norms]
    if any(not run.imported for run in STUDY.runs.values())
    else []
)
TARGETS["activations"] = [LAYOUT.row_order, *CACHED, *NORMS]
