"""Builds the catalogue, a DuckDB database with views and macros over all tables of the study."""


rule build_catalog:
    input:
        # the views depend on which tables exist, and if the results are in a bucket, a job sees only its inputs
        TARGETS["dictionaries"],
        TARGETS["features"],
        TARGETS["circuits"],
        TARGETS["labels"],
        TARGETS["cases"],
        TARGETS["evaluation"],
        TARGETS["language_model"],
        NORMS,
        rules.build_corpus.output.document,
        rules.build_corpus.output.token,
        rules.build_corpus.output.tokenizer,
        rules.annotate_concepts.output.concept,
    output:
        LAYOUT.catalog,
    log:
        LAYOUT.log("build_catalog"),
    benchmark:
        LAYOUT.benchmark("build_catalog")
    resources:
        **needs("catalog"),
    params:
        code=code("catalog_build"),
    script:
        "../../scripts/catalog_build.py"


TARGETS["catalog"] = [LAYOUT.catalog]
