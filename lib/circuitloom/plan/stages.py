"""The work of the stages up to the activations. The work of the stages that use dictionaries."""

import math

from ..config import Study
from ..config.corpus import HubDataset as HubCorpus
from ..config.language_model import HubModel, Pretrain
from .sizes import (
    BYTES_PER_TOKEN,
    PROCESS_BYTES,
    activation_bytes,
    firing,
    forward,
    forward_bytes,
    forward_load,
    model_bytes,
    model_parameters,
    vocabulary,
    weight_bytes,
)
from .work import Load, Work


def corpus(study: Study, tokens: float) -> Work:
    """Text to tokens, by one job."""
    wide = vocabulary(study.shape) > 2**16
    text = tokens * BYTES_PER_TOKEN * 0.5
    # a token and the number of its document; both and the text lie there twice until the parts are put together
    arrays = tokens * ((4 if wide else 2) + 4)
    disk = 2 * (arrays + text) + tokens
    fetched = text if isinstance(study.corpus, HubCorpus) else 0
    return Work(
        "corpus", tokens, disk, PROCESS_BYTES, alone=True, host=PROCESS_BYTES, download=fetched, files=6
    )


def language_model(study: Study) -> Work:
    """A model that is trained here, or laid down."""
    blocks, embedding = model_parameters(study.shape)
    size, model = 4 * (blocks + embedding), study.language_model
    if not isinstance(model, Pretrain):
        fetched = model_bytes(study) if isinstance(model, HubModel) else 0
        # it is loaded once, to find the names of its parts
        return Work(
            "language_model",
            tokens=0,
            disk=model_bytes(study),
            memory=PROCESS_BYTES + model_bytes(study),
            starts=2,
            alone=True,
            host=PROCESS_BYTES + model_bytes(study),
            download=fetched,
            files=10,
        )
    operations = 3 * model.tokens * (forward(study, study.shape.layers) + 2 * embedding)
    batch = model.batch * study.corpus.context * vocabulary(study.shape) * 6
    return Work(
        "language_model",
        tokens=model.tokens,
        disk=4 * size,
        memory=PROCESS_BYTES + 4 * size + batch,
        operations=operations,
        starts=2,
        alone=True,
        load=forward_load(study, study.shape.layers, 1, 2) * (3 * model.tokens),
        host=PROCESS_BYTES + size,
        held=4 * size + batch,
        files=10,
    )


def activations(study: Study, train_tokens: float) -> Work:
    """A site's jobs, one or several, pass all rows through the model and write all layers."""
    config = study.activations
    rows = min(config.tokens or train_tokens, train_tokens)
    arrays, last = len(study.layers) * len(config.sites), max(study.layers) + 1
    shard = min(config.shard_rows, rows) * activation_bytes(study) * len(study.layers)
    shards = math.ceil(rows / config.shard_rows)
    jobs = len(config.sites) * min(config.jobs, shards)
    written = rows * activation_bytes(study) * arrays
    blocks, embedding = model_parameters(study.shape)
    return Work(
        "activations",
        tokens=rows * len(config.sites),
        disk=written + 6 * rows,
        memory=PROCESS_BYTES + 4 * (blocks + embedding) + 2 * shard,
        operations=rows * len(config.sites) * forward(study, last),
        jobs=jobs,
        starts=jobs + 1,
        alone=config.jobs == 1,
        load=forward_load(study, last) * (rows * len(config.sites)),
        host=PROCESS_BYTES + 2 * shard,
        held=forward_bytes(study, config.batch * study.corpus.context),
        written=written,
        files=arrays * shards,
    )


FIRING_NEURONS = 0.4
"""Share of the neurons that are positive on a token."""
ACTIVATION_BYTES, EXAMPLE_BYTES, FEATURE_BYTES = 9, 90, 300
"""On disk, in all tables: of an activation, an example, a feature (docs/benchmarks/queries.md)."""
TABULATING_BYTES = 600e6
"""What sorting and writing holds at once."""
TRACING_BYTES = 400e6
"""What is carried down the layers at once, and the effects of as many targets."""
CASE_TOKENS = 1_000_000
"""Tokens of a case's prompts, each counted once a pass with something ablated."""
ENCODED_AT_ONCE = 4096
"""Tokens whose activations, of all features, are held at once."""
ENCODED_BYTES = 12
"""Moved a token and feature: a pre-activation written, read to choose, read again."""


def evaluation(study: Study, held_out: float) -> Work:
    """Held-out tokens through the model, with dictionaries of one layer or of all in place of MLPs."""
    shape, runs, layers = study.shape, list(study.runs.values()), len(study.layers)
    tokens = min(study.evaluation.tokens or held_out, held_out)
    _, embedding = model_parameters(shape)
    whole = forward(study, shape.layers) + 2 * embedding
    encode = sum(2 * shape.d_model * run.width for run in runs)
    passes = len(runs) * (layers + 1) + 2 * (layers + 1)
    batch = study.evaluation.batch * study.corpus.context
    logits = batch * vocabulary(shape) * 12
    widest = max((run.width for run in runs), default=0)
    weights = max((weight_bytes(run, shape.d_model) for run in runs), default=0)
    return Work(
        "evaluation",
        tokens=tokens * passes,
        disk=1e6 * len(runs) * layers,
        memory=PROCESS_BYTES + logits,
        operations=tokens * (passes * whole + 2 * layers * encode),
        jobs=max(1, len(study.sweeps)) * layers,
        starts=len(study.sweeps) * (layers + 1) + 4,
        load=forward_load(study, shape.layers, 1) * (tokens * passes)
        + Load(full=encode, moved=ENCODED_BYTES * sum(run.width for run in runs)) * (2 * layers * tokens),
        host=PROCESS_BYTES,
        held=forward_bytes(study, batch)
        + logits
        + weights * (layers if study.evaluation.together else 1)
        + 8 * batch * widest,
        read=weights * layers * len(runs),
        files=6 * len(runs) * layers,
    )


def features(study: Study, held_out: float) -> Work:
    """Every activation of held-out tokens to tables, a job a run and layer."""
    shape, config, layers = study.shape, study.features, len(study.layers)
    tokens = min(config.tokens or held_out, held_out)
    fires: list[float] = [firing(run) for run in study.runs.values()]
    widths = [run.width for run in study.runs.values()]
    encode = 2 * shape.d_model * sum(widths) * layers
    logits = 2 * shape.d_model * sum(widths) * layers * vocabulary(shape)
    if config.neurons != 0:
        fires.append(min(config.neurons or shape.d_mlp, FIRING_NEURONS * shape.d_mlp))
        widths.append(shape.d_mlp)
    examples = config.examples + config.bands * config.band_examples
    # of a table of examples no more can be kept than there are activations
    kept = sum(min(examples * width, 2 * tokens * fire) for width, fire in zip(widths, fires, strict=True))
    disk = layers * (
        tokens * sum(fires) * ACTIVATION_BYTES + sum(widths) * FEATURE_BYTES + kept * EXAMPLE_BYTES
    )
    # what a pass lays down before it is sorted, of the jobs that run side by side
    disk += tokens * 2 * max(fires) * ACTIVATION_BYTES
    passes = sum((forward_load(study, layer + 1) for layer in study.layers), Load()) * len(fires)
    encoded = Load(full=encode, moved=ENCODED_BYTES * sum(widths) * layers)
    blocks, embedding = model_parameters(shape)
    weights = 4 * 2 * max(widths) * shape.d_model
    return Work(
        "features",
        tokens=tokens * len(fires) * layers,
        disk=disk,
        memory=PROCESS_BYTES + 4 * (blocks + embedding) + weights + TABULATING_BYTES,
        operations=tokens * (len(fires) * sum(forward(study, layer + 1) for layer in study.layers) + encode)
        + logits,
        jobs=len(fires) * layers,
        starts=len(fires) * layers,
        load=(passes + encoded) * tokens + Load(full=logits),
        host=PROCESS_BYTES + TABULATING_BYTES,
        held=forward_bytes(study, config.batch * study.corpus.context)
        + weights
        + 8 * ENCODED_AT_ONCE * max(widths),
        read=sum(weight_bytes(run, shape.d_model) for run in study.runs.values()) * layers,
        sorted=tokens * sum(fires) * layers,
        files=6 * len(fires) * layers,
    )


def circuits(study: Study) -> Work:
    """Each active feature is carried down through every attention below it, at each position."""
    shape, d = study.shape, study.shape.d_model
    operations = 0.0
    for prompt in study.circuits.prompts.values():
        run = study.runs[prompt.run or study.traced_run or ""]
        length = min(study.corpus.context, len(prompt.text.encode()) / BYTES_PER_TOKEN + 1)
        active = length * len(study.layers) * firing(run)
        # twice a head's two matrices, and its pattern; down half of the layers on average
        operations += active * shape.layers / 2 * length * d * (8 * d + 4 * length)
        # what is read of each feature by each other
        operations += active**2 * d
    prompts, behaviours = len(study.circuits.prompts), len(study.circuits.behaviours)
    tokens = sum(len(prompt.text.encode()) / BYTES_PER_TOKEN for prompt in study.circuits.prompts.values())
    blocks, embedding = model_parameters(shape)
    width = max((study.runs[name].width for name in study.transcoders), default=0)
    dictionary = 4 * 2 * width * d * len(study.layers)
    weights = 4 * (2 * blocks + 2 * embedding) + dictionary
    return Work(
        "circuits",
        tokens=tokens,
        disk=1e6 * prompts,
        memory=PROCESS_BYTES + weights + TRACING_BYTES,
        operations=operations,
        jobs=prompts + behaviours + bool(study.traced_run),
        starts=prompts + 2 * behaviours + 2,
        load=Load(full=operations),
        host=PROCESS_BYTES,
        held=model_bytes(study) + 4 * blocks + dictionary + TRACING_BYTES,
        read=dictionary * prompts,
        files=7 * prompts,
    )


def cases(study: Study, held_out: float) -> Work:
    """Held-out tokens through the dictionaries of each case's runs, and prompts with components ablated."""
    shape, layers = study.shape, len(study.layers)
    blocks, embedding = model_parameters(shape)
    tokens = min(study.evaluation.tokens or held_out, held_out)
    widths = [sum(study.runs[run].width for run in study.case_runs(name)) for name in study.cases]
    encoders = [2 * shape.d_model * width * layers for width in widths]
    passes = len(widths) * (forward(study, shape.layers) + 2 * embedding) + sum(encoders)
    weights = 4 * max(encoders, default=0)
    load = forward_load(study, shape.layers, 1) * len(widths) + Load(
        full=sum(encoders), moved=ENCODED_BYTES * sum(widths) * layers
    )
    return Work(
        "cases",
        tokens=tokens * len(widths),
        disk=1e6 * len(widths),
        memory=PROCESS_BYTES + 8 * (blocks + embedding) + weights + TRACING_BYTES,
        operations=(tokens + CASE_TOKENS) * passes,
        jobs=len(study.cases),
        starts=len(study.cases),
        load=load * (tokens + CASE_TOKENS),
        host=PROCESS_BYTES,
        held=model_bytes(study) + 4 * (blocks + embedding) + weights + TRACING_BYTES if widths else 0,
        read=weights * len(widths),
        files=10 * len(widths),
    )
