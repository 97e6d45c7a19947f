from circuitloom.core.script import job

with job("labels", snakemake):
    from pathlib import Path

    from circuitloom.config.labels import Labels
    from circuitloom.corpus.token_arrays import count_sequences, open_token_arrays
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.labels.rule_labels import layer_tables, read_planted, write_rule_labels
    from circuitloom.labels.text import read_text

    source, params = snakemake.input, snakemake.params
    tokens = open_token_arrays(source.tokens)
    sequences = count_sequences(tokens, params.tokens)
    text = read_text(tokens, sequences, load_tokenizer(source.tokenizer).strings())
    planted = read_planted(source.concept, tokens.context, text)
    layers = layer_tables([*source.tables, *source.weights])
    paths = dict(zip(params.layers, map(Path, snakemake.output), strict=True))
    config = Labels.model_validate(params.config)
    write_rule_labels(
        params.run, layers, text, tokens.context, planted, config, paths, snakemake.threads
    )  # fmt: skip
