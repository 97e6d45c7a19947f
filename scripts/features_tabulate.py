from circuitloom.core.script import job

with job("features", snakemake):
    from pathlib import Path

    from circuitloom.config.features import Features
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.dictionaries.dictionary import load_dictionary
    from circuitloom.features.basis import dictionary_basis, neuron_basis
    from circuitloom.features.logit_effects import write_logit_effects
    from circuitloom.features.tabulation import tabulate
    from circuitloom.language_model.model import load_model

    source, params, layer = snakemake.input, snakemake.params, int(snakemake.wildcards.layer)
    config = Features.model_validate(params.config)
    model = load_model(source.model, params.dtype)
    if dictionary := source.get("dictionary"):
        run = snakemake.wildcards.run
        basis = dictionary_basis(run, layer, load_dictionary(dictionary, model.device))
    else:
        basis = neuron_basis(params.run, layer, model, config.neurons)
    strings = load_tokenizer(source.tokenizer).strings()
    paths = {Path(path).stem: Path(path) for path in snakemake.output}
    tabulate(basis, model, open_tokens(source.tokens), strings, config, paths, params.code)
    write_logit_effects(basis, model, strings, config.logits, paths["logit"])
