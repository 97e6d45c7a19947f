from circuitloom.core.script import job

with job("evaluation", snakemake):
    from circuitloom.config.activations import Outliers
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.tables import BASELINE, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.evaluation.scoring import baseline_rows
    from circuitloom.language_model.model import load_model

    params = snakemake.params
    config = Evaluation.model_validate(params.config)
    held_out = load_held_out(open_tokens(snakemake.input.tokens), config)
    model = load_model(snakemake.input.model, params.dtype)
    outliers = Outliers.model_validate(params.outliers)
    rows = baseline_rows(model, [*params.sites], params.layers, held_out, config, outliers, params.sites)
    for site, output in zip(params.sites, snakemake.output, strict=True):
        write_table(BASELINE, [row for row in rows if row["site"] == site], output)
