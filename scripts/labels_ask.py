from circuitloom.core.script import job

with job("labels", snakemake):
    from pathlib import Path

    from circuitloom.config.features import Features
    from circuitloom.config.label_model import LabelModel
    from circuitloom.core.layout import Layout
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.cross_layer import load_layer
    from circuitloom.features.basis import dictionary_basis, neuron_basis
    from circuitloom.labels.label_source import open_label_source
    from circuitloom.labels.model_client import make_client
    from circuitloom.labels.model_labels import write_model_labels
    from circuitloom.labels.output_effects import score_promoted
    from circuitloom.language_model.model import load_model

    given, params = snakemake.input, snakemake.params
    run, layer = snakemake.wildcards.run, int(snakemake.wildcards.layer)
    config, features = LabelModel.model_validate(params.config), Features.model_validate(params.features)
    # settings that cannot work are reported before anything else is loaded
    client, tokens = make_client(config), open_tokens(given.tokens)
    source = open_label_source(run, layer, given.tables, tokens, given.tokenizer, features)
    model = load_model(given.model, params.dtype)
    loaded = [dictionary_basis(run, layer, load_layer(each, model.device)) for each in given.dictionary]
    basis = loaded[0] if loaded else neuron_basis(run, layer, model, features.neurons)
    answers = Layout(Path(given.model).parent).label_answers(run, layer)
    scores = score_promoted(model, basis, tokens, source)
    write_model_labels(source, config, client, answers, scores, Path(snakemake.output[0]))
