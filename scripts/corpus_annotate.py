from circuitloom.core.script import job

with job("corpus", snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from circuitloom.config.corpus import Corpus
    from circuitloom.core.tables import CONCEPT, write_table
    from circuitloom.corpus.annotations import annotate

    source = snakemake.input
    annotations = annotate(
        TypeAdapter(Corpus).validate_python(snakemake.params.config),
        snakemake.params.seed,
        Path(source.document),
        Path(source.tokenizer),
        Path(source.validation),
    )
    write_table(CONCEPT, annotations, snakemake.output.concept)
