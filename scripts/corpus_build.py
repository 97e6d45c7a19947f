from circuitloom.core.script import job

with job("corpus", snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from circuitloom.config.corpus import Corpus
    from circuitloom.corpus.build import TokenizerSource, build_corpus

    build_corpus(
        TypeAdapter(Corpus).validate_python(snakemake.params.config),
        Path(snakemake.output.train).parent,
        snakemake.params.seed,
        TokenizerSource(**snakemake.params.tokenizer),
        snakemake.params.code,
    )
