from circuitloom.core.script import job

with job("language_model", snakemake):
    from pathlib import Path

    from circuitloom.config.language_model import Pretrain
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.language_model.pretraining import pretrain

    pretrain(
        open_tokens(snakemake.input.train),
        Path(snakemake.input.tokenizer),
        Pretrain.model_validate(snakemake.params.config),
        snakemake.params.seed,
        Path(snakemake.output.model),
        snakemake.params.code,
    )
