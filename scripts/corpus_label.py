from circuitloom.job import job

with job("corpus", snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from circuitloom.config.corpus import Corpus
    from circuitloom.corpus.labelling import label
    from circuitloom.tables import CONCEPT, write_table

    source = snakemake.input
    rows = label(
        TypeAdapter(Corpus).validate_python(snakemake.params.config),
        snakemake.params.seed,
        Path(source.document),
        Path(source.tokenizer),
        Path(source.validation),
    )
    write_table(CONCEPT, rows, snakemake.output.concept)
