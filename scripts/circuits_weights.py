from circuitloom.core.script import job

with job("circuits", snakemake):
    from pathlib import Path

    from circuitloom.config.circuits import WeightsConfig
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.cross_layer import load_layers
    from circuitloom.language_model.model import load_model
    from circuitloom.weights.weight_tables import write_weight_tables

    source, params = snakemake.input, snakemake.params
    model = load_model(source.model, params.dtype)
    dictionaries = load_layers(source.dictionaries, model.device, params.dtype)
    folders = {
        int(path.parent.name.removeprefix("layer")): path.parent for path in map(Path, snakemake.output)
    }
    strings = load_tokenizer(source.tokenizer).strings()
    config = WeightsConfig.model_validate(params.config)
    write_weight_tables(params.run, dictionaries, model, strings, open_tokens(source.tokens), config, folders)
