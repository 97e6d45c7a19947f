"""Circuits. Traces prompts to attribution graphs, analyses the weights alone, and ablates components of behaviours."""

from circuitloom.core.layout import WEIGHTS_TABLES

OTHER_KEYS = ("run", "prompts", "behaviours", "weights")
TRACING_KEYS = [key for key in section("circuits") if key not in OTHER_KEYS]
WEIGHTS_FILES = [
    LAYOUT.weights(STUDY.traced_run, layer) / f"{table}.parquet"
    for layer in STUDY.layers
    for table in WEIGHTS_TABLES
    if STUDY.traced_run
]


TRACING = {
    "config": section("circuits", *TRACING_KEYS),
    "context": STUDY.circuits.context or STUDY.corpus.context,
    "code": code("circuits_trace"),
}

if STUDY.grouped:

    for run in sorted(set(map(traced_run, STUDY.circuits.prompts))):
        traces = [t for t in STUDY.circuits.prompts if traced_run(t) == run]

        rule:
            name:
                f"trace_{rule_part(run)}"
            input:
                model=LAYOUT.model,
                tokenizer=LAYOUT.tokenizer,
                dictionaries=dictionary_folders([run], STUDY.layers),
            output:
                **trace_outputs(traces),
            log:
                LAYOUT.log(f"trace_{run}"),
            benchmark:
                LAYOUT.benchmark(f"trace_{rule_part(run)}")
            threads: split_cores(2)
            resources:
                **needs("circuits", gpu=True),
            params:
                **TRACING,
                prompts={t: section("circuits")["prompts"][t] for t in traces},
                run=run,
            script:
                "../../scripts/circuits_trace.py"

else:

    rule trace_prompt:
        input:
            model=LAYOUT.model,
            tokenizer=LAYOUT.tokenizer,
            dictionaries=lambda wildcards: dictionary_folders(
                [traced_run(wildcards.trace)], STUDY.layers
            ),
        output:
            **trace_outputs(["{trace}"]),
        log:
            LAYOUT.log("trace_prompt_{trace}"),
        benchmark:
            LAYOUT.benchmark("trace_prompt_{trace}")
        wildcard_constraints:
            trace="|".join(map(re.escape, STUDY.circuits.prompts)) or "none",
        threads: split_cores(len(STUDY.circuits.prompts))
        resources:
            **needs("circuits", gpu=True),
        params:
            **TRACING,
            prompts=lambda wildcards: {
                wildcards.trace: section("circuits")["prompts"][wildcards.trace]
            },
            run=lambda wildcards: traced_run(wildcards.trace),
        script:
            "../../scripts/circuits_trace.py"


if STUDY.traced_run:

    rule view_weights:
        input:
            model=LAYOUT.model,
            tokenizer=LAYOUT.tokenizer,
            tokens=LAYOUT.tokens("validation"),
            dictionaries=dictionary_folders([STUDY.traced_run], STUDY.layers),
        output:
            WEIGHTS_FILES,
        log:
            LAYOUT.log("view_weights"),
        benchmark:
            LAYOUT.benchmark("view_weights")
        threads: split_cores(2)
        resources:
            **needs("circuits", gpu=True),
        params:
            config=section("circuits")["weights"],
            run=STUDY.traced_run,
            dtype=STUDY.circuits.dtype,
            code=code("circuits_weights"),
        script:
            "../../scripts/circuits_weights.py"


for behaviour, keys in STUDY.circuits.behaviours.items():
    runs = keys.runs or [STUDY.traced_run]
    tables = behaviour_tables(runs)

    rule:
        name:
            f"ablate_components_{rule_part(behaviour)}"
        input:
            model=LAYOUT.model,
            tokenizer=LAYOUT.tokenizer,
            dictionaries=dictionary_folders(runs, STUDY.layers),
        output:
            **{
                table: LAYOUT.behaviour(behaviour) / f"{table}.parquet"
                for table in tables
            },
        log:
            LAYOUT.log(f"ablate_{behaviour}"),
        benchmark:
            LAYOUT.benchmark(f"ablate_{behaviour}")
        threads: split_cores(2)
        resources:
            **needs("circuits", gpu=True),
        params:
            behaviour=section("circuits")["behaviours"][behaviour],
            name=behaviour,
            runs=runs,
            layers=STUDY.layers,
            context=STUDY.corpus.context,
            dtype=STUDY.circuits.dtype,
            code=code("circuits_ablate"),
        script:
            "../../scripts/circuits_ablate.py"


TARGETS["circuits"] = [
    LAYOUT.trace(trace) / file
    for trace in STUDY.circuits.prompts
    for file in TRACE_FILES.values()
]
TARGETS["circuits"] += WEIGHTS_FILES
TARGETS["circuits"] += [
    LAYOUT.behaviour(behaviour) / f"{table}.parquet"
    for behaviour, keys in STUDY.circuits.behaviours.items()
    for table in behaviour_tables(keys.runs or [STUDY.traced_run])
]
