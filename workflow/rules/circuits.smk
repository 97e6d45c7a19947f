"""Circuits: of prompts, a job each; what weights alone say; and what behaviours depend on, basis by basis."""

TRACE_TABLES = ("trace", "node", "edge", "path", "intervention")
NOT_OF_TRACING = ("run", "prompts", "behaviours", "weights")
TRACING_KEYS = [key for key in section("circuits") if key not in NOT_OF_TRACING]
VIEWS = f"{RESULTS}/circuits/weights"
VIEW_TABLES = ("deembedding", "connection", "blind")
VIEW_FILES = [
    f"{VIEWS}/{STUDY.traced_run}/layer{layer}/{table}.parquet"
    for layer in STUDY.layers
    for table in VIEW_TABLES
    if STUDY.traced_run
]


rule trace_prompt:
    input:
        model=f"{RESULTS}/model",
        tokenizer=f"{RESULTS}/corpus/tokenizer",
        dictionaries=lambda wildcards: dictionary_folders(
            [traced_run(wildcards.trace)], STUDY.layers
        ),
    output:
        **{
            table: f"{RESULTS}/circuits/{{trace}}/{table}.parquet"
            for table in TRACE_TABLES
        },
        graph=f"{RESULTS}/circuits/{{trace}}/graph.json",
        figure=report(
            f"{RESULTS}/circuits/{{trace}}/graph.png",
            caption="../report/circuit.rst",
            category="Circuits",
            subcategory="{trace}",
        ),
    log:
        f"{RESULTS}/logs/trace_prompt_{{trace}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/trace_prompt_{{trace}}.tsv"
    wildcard_constraints:
        trace="|".join(map(re.escape, STUDY.circuits.prompts)) or "none",
    threads: split_cores(len(STUDY.circuits.prompts))
    resources:
        **needs("circuits", gpu=True),
    params:
        config=section("circuits", *TRACING_KEYS),
        prompt=lambda wildcards: section("circuits")["prompts"][wildcards.trace],
        run=lambda wildcards: traced_run(wildcards.trace),
        context=STUDY.corpus.context,
        code=code("circuits_trace"),
    script:
        "../../scripts/circuits_trace.py"


if STUDY.traced_run:

    rule view_weights:
        input:
            model=f"{RESULTS}/model",
            tokenizer=f"{RESULTS}/corpus/tokenizer",
            tokens=f"{RESULTS}/corpus/validation.zarr",
            dictionaries=dictionary_folders([STUDY.traced_run], STUDY.layers),
        output:
            VIEW_FILES,
        log:
            f"{RESULTS}/logs/view_weights.log",
        benchmark:
            f"{RESULTS}/benchmarks/view_weights.tsv"
        threads: split_cores(2)
        resources:
            **needs("circuits", gpu=True),
        params:
            config=section("circuits")["weights"],
            run=STUDY.traced_run,
            dtype=MODEL_DTYPE,
            code=code("circuits_view"),
        script:
            "../../scripts/circuits_view.py"


for behaviour, keys in STUDY.circuits.behaviours.items():
    runs = keys.runs or [STUDY.traced_run]
    tables = component_tables(runs)

    rule:
        name:
            f"ablate_components_{rule_part(behaviour)}"
        input:
            model=f"{RESULTS}/model",
            tokenizer=f"{RESULTS}/corpus/tokenizer",
            dictionaries=dictionary_folders(runs, STUDY.layers),
        output:
            **{t: f"{RESULTS}/circuits/{behaviour}/{t}.parquet" for t in tables},
        log:
            f"{RESULTS}/logs/ablate_{behaviour}.log",
        benchmark:
            f"{RESULTS}/benchmarks/ablate_{behaviour}.tsv"
        threads: split_cores(2)
        resources:
            **needs("circuits", gpu=True),
        params:
            behaviour=section("circuits")["behaviours"][behaviour],
            name=behaviour,
            runs=runs,
            layers=STUDY.layers,
            context=STUDY.corpus.context,
            dtype=MODEL_DTYPE,
            code=code("circuits_ablate"),
        script:
            "../../scripts/circuits_ablate.py"


TARGETS["circuits"] = [
    f"{RESULTS}/circuits/{trace}/{file}"
    for trace in STUDY.circuits.prompts
    for file in (
        *(f"{table}.parquet" for table in TRACE_TABLES),
        "graph.json",
        "graph.png",
    )
]
TARGETS["circuits"] += VIEW_FILES
TARGETS["circuits"] += [
    f"{RESULTS}/circuits/{behaviour}/{table}.parquet"
    for behaviour, keys in STUDY.circuits.behaviours.items()
    for table in component_tables(keys.runs or [STUDY.traced_run])
]
