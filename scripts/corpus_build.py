from circuitloom.core.script import job

with job("corpus", snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from circuitloom.config.corpus import Corpus
    from circuitloom.corpus.build import TokenizerName, build

    build(
        TypeAdapter(Corpus).validate_python(snakemake.params.config),
        Path(snakemake.output.train).parent,
        snakemake.params.seed,
        TokenizerName(**snakemake.params.tokenizer),
        snakemake.params.code,
    )
