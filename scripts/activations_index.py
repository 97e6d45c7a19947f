from circuitloom.core.script import job

with job("activations", snakemake):
    from pathlib import Path

    from circuitloom.activations.row_order import row_order, write_row_origins
    from circuitloom.config.activations import Activations
    from circuitloom.corpus.token_arrays import open_token_arrays

    config = Activations.model_validate(snakemake.params.config)
    tokens = open_token_arrays(snakemake.input.train)
    order = row_order(tokens, snakemake.params.seed, config.shard_rows, config.tokens)
    write_row_origins(order, Path(snakemake.output[0]))
