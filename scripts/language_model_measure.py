from circuitloom.core.script import job

with job("language_model", snakemake):
    import pyarrow.compute as pc

    from circuitloom.core.tables import LANGUAGE_MODEL, read_table, write_table
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.language_model.model import load_model
    from circuitloom.language_model.quality import language_model_rows

    rows = language_model_rows(
        load_model(snakemake.input.model, snakemake.params.dtype),
        open_tokens(snakemake.input.validation),
        read_table(snakemake.input.document, pc.field("split") == "validation"),
        load_tokenizer(snakemake.input.tokenizer),
        snakemake.params.seed,
        snakemake.params.loss_tokens,
        snakemake.params.source,
    )
    write_table(LANGUAGE_MODEL, rows, snakemake.output.table)
