from circuitloom.core.script import job

with job("activations", snakemake):
    from pathlib import Path

    from circuitloom.activations.norms import norm_rows, warning
    from circuitloom.core.progress import announce
    from circuitloom.core.tables import ACTIVATION_NORM, write_table
    from circuitloom.corpus.token_arrays import open_token_arrays
    from circuitloom.corpus.tokenizer import load_tokenizer

    source, params = snakemake.input, snakemake.params
    strings = load_tokenizer(source.tokenizer).strings()
    tokens = open_token_arrays(source.train)
    rows = norm_rows(Path(source.rows).parent, params.sites, params.layers, tokens, strings)
    write_table(ACTIVATION_NORM, rows, snakemake.output[0])
    if line := warning(rows, params.above):
        announce("activations", line)
