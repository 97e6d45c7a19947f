from circuitloom.core.script import job

with job("labels", snakemake):
    from itertools import product
    from pathlib import Path

    from circuitloom.config.features import Features
    from circuitloom.corpus.token_arrays import count_sequences
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.cross_layer import load_layer
    from circuitloom.features.basis import dictionary_basis, neuron_basis
    from circuitloom.labels.output_effects import ids_by_name, write_label_outputs
    from circuitloom.labels.text import scoring_index
    from circuitloom.language_model.model import load_model

    given, params = snakemake.input, snakemake.params
    features, tokens = Features.model_validate(params.features), open_tokens(given.tokens)
    model = load_model(given.model, params.dtype)
    scoring = scoring_index(tokens, count_sequences(tokens, features.tokens))
    ids = ids_by_name(load_tokenizer(given.tokenizer).strings())
    files = zip(given.labels, given.activations, map(Path, snakemake.output), strict=True)
    loaded = (load_layer(folder, model.device) for folder in given.dictionaries)
    for table, paths in zip(product(params.runs, params.layers), files, strict=True):
        # the dictionaries are in the order of the tables; neurons, which have none, come last
        found = next(loaded, None)
        basis = dictionary_basis(*table, found) if found else neuron_basis(*table, model, features.neurons)
        write_label_outputs(basis, model, tokens, scoring, ids, *paths)
