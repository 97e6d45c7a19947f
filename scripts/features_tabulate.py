from circuitloom.core.script import job

with job("features", snakemake):
    from itertools import product
    from pathlib import Path

    from circuitloom.config.features import Features
    from circuitloom.core.layout import FEATURE_TABLES
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.cross_layer import load_layer
    from circuitloom.features.basis import dictionary_basis, neuron_basis
    from circuitloom.features.logit_effects import write_logit_effects
    from circuitloom.features.tabulation import tabulate
    from circuitloom.language_model.model import load_model

    source, params = snakemake.input, snakemake.params
    config = Features.model_validate(params.config)
    model = load_model(source.model, params.dtype)
    tables = list(product(params.runs, params.layers))
    # without dictionaries, the features are neurons
    loaded = [load_layer(folder, model.device, mapped=True) for folder in source.get("dictionaries", [])]
    bases = [dictionary_basis(*table, each) for table, each in zip(tables, loaded, strict=False)]
    bases = bases or [neuron_basis(*table, model, config.neurons) for table in tables]
    strings = load_tokenizer(source.tokenizer).strings()
    outputs, n = list(map(Path, snakemake.output)), len(FEATURE_TABLES)
    paths = [{path.stem: path for path in outputs[i : i + n]} for i in range(0, len(outputs), n)]
    tabulate(bases, model, open_tokens(source.tokens), strings, config, paths, params.code)
    for basis, files in zip(bases, paths, strict=True):
        write_logit_effects(basis, model, strings, config.logits, files["logit"])
