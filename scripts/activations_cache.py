from circuitloom.core.script import job

with job("activations", snakemake):
    from pathlib import Path

    from circuitloom.activations.cache import cache_shards_of_job, cache_site
    from circuitloom.activations.row_order import row_order
    from circuitloom.config.activations import Activations
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.language_model.model import load_model

    params = snakemake.params
    outputs = [Path(output) for output in snakemake.output]
    part = snakemake.wildcards.get("part")
    # A single job takes the layers from the names of its output files. If the layers were a parameter, Snakemake would
    # cache all layers again after a layer is removed from the config.
    layers = params.layers if part else [int(output.stem.removeprefix("layer")) for output in outputs]
    config = Activations.model_validate({**params.config, "layers": layers})
    order = row_order(open_tokens(snakemake.input.train), params.seed, config.shard_rows, config.tokens)
    model = load_model(snakemake.input.model, params.dtype)
    if part:
        cache_shards_of_job(params.site, order, model, config, int(part), outputs[0], params.code)
    else:
        cache_site(params.site, order, model, config, outputs[0].parents[1], params.code)
