from circuitloom.core.script import job

with job("evaluation", snakemake):
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.layout import ALL_LAYERS
    from circuitloom.core.tables import METRIC, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.dictionary import load_dictionary
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.evaluation.scoring import metric_row, read_baselines, score_runs
    from circuitloom.language_model.model import load_model

    source, params = snakemake.input, snakemake.params
    config = Evaluation.model_validate(params.config)
    held_out = load_held_out(open_tokens(source.tokens), config)
    model = load_model(source.model, params.dtype)
    baseline = read_baselines(source.baselines)["mlp_out", ALL_LAYERS]
    folders = iter(source.dictionaries)
    for run, metric in zip(params.runs, snakemake.output.metric, strict=True):
        # one run is loaded at a time, because the dictionaries of all runs may not fit into memory
        layers = {layer: load_dictionary(next(folders), model.device) for layer in params.layers}
        scores = score_runs(model, {run: layers}, held_out, config.batch)
        write_table(METRIC, [metric_row(run, ALL_LAYERS, scores[run], baseline)], metric)
