from circuitloom.core.script import job

with job("evaluation", snakemake):
    from itertools import product

    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.layout import NEURONS, RESIDUAL
    from circuitloom.core.tables import FEATURE_CONCEPT, read_table, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.cross_layer import load_layer
    from circuitloom.evaluation.concept_matching import match_concepts
    from circuitloom.evaluation.concepts import concept_annotations
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.language_model.model import load_model

    source, output, params = snakemake.input, snakemake.output, snakemake.params
    config = Evaluation.model_validate(params.config)
    held_out = load_held_out(open_tokens(source.tokens), config)
    annotations = concept_annotations(read_table(source.concepts), held_out)
    model = load_model(source.model, params.dtype)
    names = [run for runs in params.sweeps.values() for run in runs]
    dictionaries = {layer: {} for layer in params.layers}
    for (run, layer), folder in zip(product(names, params.layers), source.dictionaries, strict=True):
        dictionaries[layer][run] = load_layer(folder, model.device, mapped=True)
    rows = list(match_concepts(model, dictionaries, held_out, annotations, config))
    files = {file: set(runs) for runs, file in zip(params.sweeps.values(), output.dictionaries, strict=True)}
    files[output.bases] = {NEURONS, RESIDUAL}
    for file, runs in files.items():
        write_table(FEATURE_CONCEPT, [row for row in rows if row["run"] in runs], file)
