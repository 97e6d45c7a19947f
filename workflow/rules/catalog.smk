"""Views and macros over all tables of the study."""


rule build_catalog:
    input:
        # which tables there are decides what its views say: where results lie in a bucket only inputs are there
        TARGETS["dictionaries"],
        TARGETS["features"],
        TARGETS["circuits"],
        TARGETS["cases"],
        TARGETS["evaluation"],
        TARGETS["language_model"],
        rules.build_corpus.output.document,
        rules.build_corpus.output.token,
        rules.label_concepts.output.concept,
    output:
        f"{RESULTS}/catalog.duckdb",
    log:
        f"{RESULTS}/logs/build_catalog.log",
    benchmark:
        f"{RESULTS}/benchmarks/build_catalog.tsv"
    resources:
        **needs("catalog"),
    params:
        code=code("catalog_build"),
    script:
        "../../scripts/catalog_build.py"


TARGETS["catalog"] = [f"{RESULTS}/catalog.duckdb"]
