from circuitloom.core.script import job

with job("evaluation", snakemake):
    from itertools import product

    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.layout import ALL_LAYERS
    from circuitloom.core.tables import DENSITY_HISTOGRAM, METRIC, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.cross_layer import load_layer
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.evaluation.score_rows import read_baselines, score_rows
    from circuitloom.language_model.model import load_model

    source, output, params = snakemake.input, snakemake.output, snakemake.params
    config = Evaluation.model_validate(params.config)
    held_out = load_held_out(open_tokens(source.tokens), config)
    model = load_model(source.model, params.dtype)
    folders = zip(product(params.runs, params.layers), source.dictionaries, strict=True)
    dictionaries = {key: load_layer(folder, model.device, mapped=True) for key, folder in folders}
    keys = [*dictionaries] if output.get("metric") else []
    keys += [(run, ALL_LAYERS) for run in params.together]
    rows = score_rows(model, dictionaries, keys, read_baselines(source.baselines), held_out, config.batch)
    for key, file in zip(keys, [*output.get("metric", []), *output.together], strict=True):
        write_table(METRIC, [rows[key].metric], file)
    for key, file in zip(keys, output.get("histogram", []), strict=False):
        write_table(DENSITY_HISTOGRAM, rows[key].histogram, file)
