from circuitloom.core.script import job

with job("evaluation", snakemake):
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.tables import DENSITY_HISTOGRAM, METRIC, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.dictionary import load_dictionary
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.evaluation.scoring import histogram_rows, metric_row, read_baselines, score_runs
    from circuitloom.language_model.model import load_model

    source, output, layer = snakemake.input, snakemake.output, int(snakemake.wildcards.layer)
    config = Evaluation.model_validate(snakemake.params.config)
    held_out = load_held_out(open_tokens(source.tokens), config)
    model = load_model(source.model, snakemake.params.dtype)
    folders = zip(snakemake.params.runs, source.dictionaries, strict=True)
    runs = {run: {layer: load_dictionary(folder, model.device)} for run, folder in folders}
    baselines = read_baselines(source.baselines)
    scores = score_runs(model, runs, held_out, config.batch)
    for run, metric, histogram in zip(runs, output.metric, output.histogram, strict=True):
        baseline = baselines[runs[run][layer].site_out, layer]
        write_table(METRIC, [metric_row(run, layer, scores[run], baseline)], metric)
        write_table(DENSITY_HISTOGRAM, list(histogram_rows(run, layer, scores[run])), histogram)
