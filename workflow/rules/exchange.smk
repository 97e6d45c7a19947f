"""Exports dictionaries for other libraries, each run and format in one job. Without `exchange.formats`, none."""


rule export_dictionaries:
    input:
        dictionaries=dictionary_folders(["{run}"], STUDY.layers),
        # the card shows the scores
        metric=evaluation_files(["{run}"], "metric", STUDY.layers),
        together=lambda wildcards: evaluation_files(
            together_runs([STUDY.runs[wildcards.run]]), "metric", [-1]
        ),
        model=LAYOUT.model,
    output:
        directory(LAYOUT.export("{run}", "{format}")),
    log:
        LAYOUT.log("export_{run}_{format}"),
    benchmark:
        LAYOUT.benchmark("export_{run}_{format}")
    wildcard_constraints:
        run="|".join(map(re.escape, STUDY.exported_runs)) or "(?!)",
        format="|".join(map(re.escape, STUDY.exchange.formats)) or "(?!)",
    threads: 1
    resources:
        **needs("exchange"),
    params:
        layers=STUDY.layers,
        license=STUDY.exchange.license,
        model=STUDY.exchange.model,
        code=code("exchange_export"),
    script:
        "../../scripts/exchange_export.py"


TARGETS["exchange"] = [
    LAYOUT.export(run, name)
    for run in STUDY.exported_runs
    for name in STUDY.exchange.formats
]
