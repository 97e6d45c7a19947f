from circuitloom.core.script import job

with job("evaluation", snakemake):
    from itertools import product

    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.layout import ALL_LAYERS
    from circuitloom.core.tables import DENSITY_HISTOGRAM, METRIC, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.dictionary import load_dictionary
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.evaluation.scoring import histogram_rows, metric_row, read_baselines, score_runs
    from circuitloom.language_model.model import load_model

    source, output, params = snakemake.input, snakemake.output, snakemake.params
    config = Evaluation.model_validate(params.config)
    held_out = load_held_out(open_tokens(source.tokens), config)
    model = load_model(source.model, params.dtype)
    folders = zip(product(params.runs, params.layers), source.dictionaries, strict=True)
    dictionaries = {key: load_dictionary(folder, model.device) for key, folder in folders}
    baselines = read_baselines(source.baselines)

    metrics = dict(zip(dictionaries, output.get("metric", []), strict=False))
    histograms = dict(zip(dictionaries, output.get("histogram", []), strict=False))
    metrics |= {(run, ALL_LAYERS): file for run, file in zip(params.together, output.together, strict=True)}
    replaced = {
        (run, layer): {each: dictionaries[run, each] for each in params.layers if layer in (each, ALL_LAYERS)}
        for run, layer in metrics
    }
    scores = score_runs(model, replaced, held_out, config.batch)
    for (run, layer), file in metrics.items():
        score, site = scores[run, layer], next(iter(replaced[run, layer].values())).site_out
        write_table(METRIC, [metric_row(run, layer, score, baselines[site, layer])], file)
        if (run, layer) in histograms:
            write_table(DENSITY_HISTOGRAM, list(histogram_rows(run, layer, score)), histograms[run, layer])
