"""Estimates the work of every stage except the training of dictionaries, which is in training.py."""

import math

from ..activations.cache import MOST_SEQUENCES
from ..config import Study
from ..config.corpus import HubDataset as HubCorpus
from ..config.language_model import HubModel, Pretrain
from ..core.layout import NEURONS, TRACE_TABLES
from ..evaluation.replacement import ENCODE_ELEMENTS
from ..evaluation.scoring import HIDDEN_BYTES
from ..features.external_sort import BLOCK_POSITIONS, ENCODE_BATCH
from ..language_model.kernels import ROWS
from ..language_model.lm_head import BLOCK_ELEMENTS, CACHE_ELEMENTS
from .case_loads import case_load
from .sizes import (
    BYTES_PER_TOKEN,
    PROCESS_BYTES,
    activation_bytes,
    circuit_number_bytes,
    firing,
    forward,
    forward_bytes,
    forward_load,
    is_mapped,
    model_bytes,
    model_parameters,
    number_bytes,
    pass_tokens,
    resident_bytes,
    vocabulary,
    weight_bytes,
    weight_rows,
)
from .work import GpuLoad, Work

FIRING_NEURONS = 0.4
"""Fraction of the neurons that are positive on a token."""
ACTIVATION_BYTES, EXAMPLE_BYTES, FEATURE_BYTES = 9, 90, 300
"""Bytes on disk in all tables, per activation, per example and per feature (docs/benchmarks/queries.md)."""
TABULATING_BYTES = 600e6
"""Bytes of memory for sorting and writing activations."""
TRACING_BYTES = 400e6
"""Bytes of memory for tracing: the gradients of a chunk of targets, and effects."""
EMBEDDED_BYTES = 8
"""Bytes of memory per number of the embedding matrix for the blind rule of a feature: the scaled embeddings, and
products with them."""
CASE_SECONDS = 7.0
"""Seconds of a case study on a small model, where the time of a pass does not depend on its operations."""
GENERATED, TOKENIZED = 650_000, 300_000
"""Number of tokens per second that one core generates, or tokenizes, and packs."""
PROMPT_SECONDS, WEIGHTS_SECONDS = 1.0, 4.0
"""Seconds of a traced prompt or behaviour, and of the analysis of the weights of a layer, on a small model."""
INSTALL_SECONDS = 6.0
"""Seconds of storing an existing model and of loading it to measure its loss."""
EXPORT_RATE, EXPORT_COPIES = 200e6, 3
"""Bytes of weights that an export reads, writes and hashes per second, and copies of a layer in memory. Both are
assumed, not measured."""
LABEL_PROCESS_BYTES, LABEL_TEXT_BYTES, LABEL_FIRING_BYTES = 300e6, 400, 24
"""Bytes of memory of a job that labels features: its libraries, and per token and per activation of a layer."""
LABEL_BYTES = 250
"""Bytes on disk per labelled feature."""
LABEL_SECONDS, LABEL_FIRING_SECONDS = 8e-3, 1e-7
"""Seconds of labelling per feature and per activation, of one core."""
SAID_SHARE, SAID_TOKENS = 0.14, 400
"""Share of labels that name next tokens, and number of tokens that run through the model for the output score of each:
four contexts of about 50, twice."""
DRAWING_SECONDS = 1.0
"""Seconds of drawing a circuit."""
HEAD_BLOCKS = 4
"""Number of blocks of logits in memory: of two models, their difference, and probabilities."""
ENCODED_BYTES = 12
"""Bytes of GPU memory traffic per token and feature. Each pre-activation is written once and read twice."""


def corpus(study: Study, tokens: float) -> Work:
    """Returns the work of turning text into tokens. The stage has one job."""
    wide = vocabulary(study.shape) > 2**16
    text = tokens * BYTES_PER_TOKEN * 0.5
    # each token has a token number and a document number; numbers and text are stored twice until parts are merged
    arrays = tokens * ((4 if wide else 2) + 4)
    disk = 2 * (arrays + text) + tokens
    fetched = text if isinstance(study.corpus, HubCorpus) else 0
    return Work(
        "corpus",
        tokens,
        disk,
        PROCESS_BYTES,
        exclusive=True,
        host_memory=PROCESS_BYTES,
        download=fetched,
        fixed_seconds=tokens / (GENERATED if study.corpus.generated else TOKENIZED),
        files=7,
    )


def language_model(study: Study, held_out: float) -> Work:
    """Returns the work of pretraining a model, or of storing an existing model, and of its loss on held-out tokens."""
    blocks, embedding = model_parameters(study.shape)
    size, model = 4 * (blocks + embedding), study.language_model
    measured = min(model.loss_tokens or held_out, held_out)
    if not isinstance(model, Pretrain):
        fetched = model_bytes(study) if isinstance(model, HubModel) else 0
        # the model is loaded once, to find the names of its modules
        return Work(
            "language_model",
            tokens=0,
            disk=model_bytes(study),
            memory=PROCESS_BYTES + model_bytes(study),
            operations=measured * (forward(study, study.shape.layers) + 2 * embedding),
            starts=2,
            exclusive=True,
            fixed_seconds=INSTALL_SECONDS,
            host_memory=PROCESS_BYTES + model_bytes(study),
            download=fetched,
            files=10,
        )
    # a training step takes about three forward passes
    passes = 3 * model.tokens + measured
    operations = passes * (forward(study, study.shape.layers) + 2 * embedding)
    rows = min(ROWS, BLOCK_ELEMENTS // vocabulary(study.shape))
    batch = forward_bytes(study, model.batch * study.corpus.context) + 12 * rows * vocabulary(study.shape)
    return Work(
        "language_model",
        tokens=model.tokens,
        disk=4 * size,
        memory=PROCESS_BYTES + 4 * size + batch,
        operations=operations,
        starts=2,
        exclusive=True,
        gpu_load=forward_load(study, study.shape.layers, 1, 2) * passes,
        host_memory=PROCESS_BYTES + size,
        gpu_memory=4 * size + batch,
        files=10,
    )


def activations(study: Study, train_tokens: float) -> Work:
    """Returns the work of running the model on all tokens and writing activations of all layers."""
    config = study.activations
    rows = min(config.tokens or train_tokens, train_tokens)
    arrays, last = len(study.layers) * len(config.sites), max(study.layers) + 1
    shard = min(config.shard_rows, rows) * activation_bytes(study) * len(study.layers)
    shards = math.ceil(rows / config.shard_rows)
    jobs = len(config.sites) * min(config.jobs, shards)
    written = rows * activation_bytes(study) * arrays
    tokens = pass_tokens(study, config.batch, most=MOST_SEQUENCES)
    return Work(
        "activations",
        tokens=rows * len(config.sites),
        disk=written + 6 * rows,
        memory=PROCESS_BYTES + forward_bytes(study, tokens) + 2 * shard,
        operations=rows * len(config.sites) * forward(study, last),
        jobs=jobs,
        starts=jobs + 2,
        exclusive=config.jobs == 1,
        gpu_load=forward_load(study, last) * (rows * len(config.sites)),
        host_memory=PROCESS_BYTES + 2 * shard,
        gpu_memory=forward_bytes(study, tokens),
        written=written,
        files=arrays * shards,
    )


def evaluation(study: Study, held_out: float) -> Work:
    """Returns the work of forward passes on held-out tokens, with dictionaries in place of one layer's MLP or of all
    MLPs, and of matching features with concepts."""
    shape, runs, layers = study.shape, list(study.runs.values()), len(study.layers)
    tokens = min(study.evaluation.tokens or held_out, held_out)
    _, embedding = model_parameters(shape)
    full_pass = forward(study, shape.layers) + 2 * embedding
    encode = sum(2 * shape.d_model * run.width for run in runs)
    # a pass starts at the first replaced layer
    starts = [*study.layers] + [min(study.layers)] * (study.evaluation.together and layers > 1)
    passes = sum(forward(study, shape.layers - layer) + 2 * embedding for layer in starts)
    # the tokens that outliers leave out depend on what transcoders read
    drops = study.activations.outliers.action == "drop"
    sites, sweeps = (
        len({(run.site_out, run.reads if drops else "") for run in runs}),
        max(1, len(study.sweeps)),
    )
    matched = study.corpus.generated
    jobs = (sweeps if study.grouped else sweeps * layers + len(runs) * (layers > 1)) + 1 + matched
    # every job runs the original model too; ablations also need the means
    operations = (len(runs) + 2 * sites) * passes + (jobs + 1) * full_pass + 2 * layers * encode
    replaced = sum((forward_load(study, shape.layers - layer, 1) for layer in starts), GpuLoad())
    entries = layers * (sum(map(firing, runs)) + FIRING_NEURONS * shape.d_mlp + 2 * shape.d_model)
    batch = pass_tokens(study, study.evaluation.batch, kept=shape.layers)
    state = number_bytes(study) * batch * shape.d_model
    # a job stores what each block returns, and compares the hidden states of some models
    held = forward_bytes(study, batch) + shape.layers * state + min(HIDDEN_BYTES, 2 * sites * layers * state)
    widest = max((run.width for run in runs), default=0)
    held += 8 * min(ENCODE_ELEMENTS, batch * widest)
    weights = max((weight_bytes(run, shape.d_model, study.layers) for run in runs), default=0)
    size = {run.name: resident_bytes(run, shape.d_model, study.layers, "cpu") for run in runs}
    resident = max(size.values(), default=0)
    on_gpu = max((resident_bytes(run, shape.d_model, study.layers, "cuda") for run in runs), default=0)
    # a job has all layers of a cross-layer transcoder
    loaded = [
        sum(size[run.name] for run in sweep) * (layers if study.grouped or sweep[0].is_cross_layer else 1)
        for sweep in study.sweeps.values()
    ]
    loaded = max([*loaded, resident * (layers if study.evaluation.together else 1)])
    # a mapped encoder is read for each pass, with one layer and with all layers replaced
    mapped = [run for run in runs if is_mapped(run, shape.d_model, study.layers, "cuda")]
    encoders = 2 * layers * sum(4 * run.width * shape.d_model for run in mapped) * tokens / batch
    n_passes = (len(runs) + 2 * sites) * len(starts) + jobs + 1
    return Work(
        "evaluation",
        tokens=tokens * n_passes,
        disk=1e6 * len(runs) * layers,
        memory=PROCESS_BYTES + held + loaded + HEAD_BLOCKS * 4 * CACHE_ELEMENTS,
        operations=tokens * operations,
        jobs=jobs,
        starts=jobs + 2,
        gpu_load=replaced * (tokens * (len(runs) + 2 * sites))
        + forward_load(study, shape.layers, 1) * (tokens * (jobs + 1))
        + GpuLoad(fp32_flops=encode, moved=ENCODED_BYTES * sum(run.width for run in runs))
        * (2 * layers * tokens),
        host_memory=PROCESS_BYTES,
        gpu_memory=held
        + HEAD_BLOCKS * 4 * min(BLOCK_ELEMENTS, batch * vocabulary(shape))
        + on_gpu * (layers if study.evaluation.together else 1),
        read=weights * layers * len(runs) + encoders,
        matched_activations=tokens * entries * matched,
        files=6 * len(runs) * layers,
    )


def features(study: Study, held_out: float) -> Work:
    """Returns the work of writing all activations on held-out tokens into tables.

    A job tabulates all runs of a sweep, at one layer or at all layers. The neurons have jobs of their own.
    """
    shape, config, layers = study.shape, study.features, len(study.layers)
    tokens = min(config.tokens or held_out, held_out)
    runs = list(study.runs.values())
    fires: list[float] = [firing(run) for run in runs]
    widths = [run.width for run in runs]
    encode = 2 * shape.d_model * sum(widths) * layers
    logits = 2 * shape.d_model * sum(widths) * layers * vocabulary(shape)
    if config.neurons != 0:
        fires.append(min(config.neurons or shape.d_mlp, FIRING_NEURONS * shape.d_mlp))
        widths.append(shape.d_mlp)
    examples = config.examples + config.bands * config.band_examples
    # a feature has at most one example per activation
    kept = sum(min(examples * width, 2 * tokens * fire) for width, fire in zip(widths, fires, strict=True))
    disk = layers * (
        tokens * sum(fires) * ACTIVATION_BYTES + sum(widths) * FEATURE_BYTES + kept * EXAMPLE_BYTES
    )
    # unsorted activations of the jobs that run at the same time
    disk += tokens * 2 * max(fires, default=0) * ACTIVATION_BYTES
    encoded = GpuLoad(fp32_flops=encode, moved=ENCODED_BYTES * sum(widths) * layers)
    positions = pass_tokens(study, config.batch, kept=shape.layers)
    groups = 1 if study.grouped else layers
    tabulated = len(study.sweeps) + (config.neurons != 0)
    weights, on_gpu = (
        max(
            [
                sum(resident_bytes(run, shape.d_model, study.layers, device) for run in sweep)
                for sweep in study.sweeps.values()
            ],
            default=0,
        )
        * layers
        / groups
        for device in ("cpu", "cuda")
    )
    mapped = [run for run in runs if is_mapped(run, shape.d_model, study.layers, "cuda")]
    # a mapped encoder is read for each block of tokens, and computes a block of features at a time
    encoders = layers * sum(4 * run.width * shape.d_model for run in mapped) * tokens / BLOCK_POSITIONS
    at_once = [run.width for run in runs if run not in mapped] + [shape.d_mlp] * (config.neurons != 0)
    # what each layer reads and writes, and the unembedding with the gain of the final norm
    read = number_bytes(study) * 2 * positions * shape.d_model * layers / groups
    # inputs of a block of tokens wait for a mapped encoder
    waiting = 4 * BLOCK_POSITIONS * shape.d_model * layers / groups * bool(mapped)
    unembedding = 4 * vocabulary(shape) * shape.d_model
    # a job runs the model once, up to its last layer
    last = [max(study.layers)] if study.grouped else study.layers
    passes = sum((forward_load(study, layer + 1) for layer in last), GpuLoad()) * tabulated
    return Work(
        "features",
        tokens=tokens * tabulated * groups,
        disk=disk,
        memory=PROCESS_BYTES
        + forward_bytes(study, positions)
        + weights
        + read
        + waiting
        + unembedding
        + TABULATING_BYTES,
        operations=tokens * (tabulated * sum(forward(study, layer + 1) for layer in last) + encode) + logits,
        jobs=tabulated * groups,
        starts=tabulated * groups,
        gpu_load=(passes + encoded) * tokens + GpuLoad(fp32_flops=logits),
        host_memory=PROCESS_BYTES + TABULATING_BYTES,
        gpu_memory=forward_bytes(study, positions)
        + on_gpu
        + waiting
        + 8 * ENCODE_BATCH * max(at_once, default=0),
        read=sum(weight_bytes(run, shape.d_model, study.layers) for run in runs) * layers + encoders,
        sorted_activations=tokens * sum(fires) * layers,
        files=6 * len(fires) * layers,
    )


def circuits(study: Study) -> Work:
    """Returns the work of tracing. Each active feature is backpropagated through the attention of all earlier
    layers."""
    shape, d = study.shape, study.shape.d_model
    operations = 0.0
    for name, prompt in study.circuits.prompts.items():
        run = study.runs[study.run_of_prompt(name)]
        length = min(study.corpus.context, len(prompt.text.encode()) / BYTES_PER_TOKEN + 1)
        active = length * len(study.layers) * firing(run)
        # two matrices per head, forward and back, and the head's pattern, through half of the layers on average
        operations += active * shape.layers / 2 * length * d * (8 * d + 4 * length)
        # effects between all pairs of features
        operations += active**2 * d
    prompts, behaviours = len(study.circuits.prompts), len(study.circuits.behaviours)
    traced = {study.run_of_prompt(name) for name in study.circuits.prompts}
    jobs = len(traced) if study.grouped else prompts
    tokens = sum(len(prompt.text.encode()) / BYTES_PER_TOKEN for prompt in study.circuits.prompts.values())
    blocks, embedding = model_parameters(shape)
    loaded = [
        study.runs[name] for name in {*study.transcoders, *traced, study.traced_run} if name is not None
    ]
    rows = max((weight_rows(run, study.layers) for run in loaded), default=0)
    dictionary = 4 * rows * d * len(study.layers)
    weights = 4 * (2 * blocks + 2 * embedding) + dictionary
    # the weight tables have the scaled embedding, what layer 0 adds to it, and products with both
    embedded = (8 + EMBEDDED_BYTES) * embedding * bool(study.traced_run)
    return Work(
        "circuits",
        tokens=tokens,
        disk=1e6 * prompts,
        memory=PROCESS_BYTES + weights + embedded + TRACING_BYTES,
        operations=operations,
        jobs=jobs + behaviours + bool(study.traced_run),
        starts=jobs + behaviours + bool(study.traced_run),
        fixed_seconds=PROMPT_SECONDS * (prompts + behaviours)
        + WEIGHTS_SECONDS * len(study.layers) * bool(study.traced_run),
        gpu_load=GpuLoad(fp32_flops=operations),
        host_memory=PROCESS_BYTES,
        gpu_memory=model_bytes(study, circuit_number_bytes(study))
        + 4 * blocks
        + dictionary
        + embedded
        + TRACING_BYTES,
        read=dictionary * prompts,
        files=(len(TRACE_TABLES) + 2) * prompts,
    )


def cases(study: Study, held_out: float) -> Work:
    """Returns the work of the case studies: passes of prompts with ablated components, traced prompts, and held-out
    tokens with dictionaries."""
    shape, layers = study.shape, len(study.layers)
    blocks, embedding = model_parameters(shape)
    loads = [case_load(study, name, held_out) for name in study.cases]
    runs = [[study.runs[run] for run in study.case_runs(name)] for name in study.cases]
    widths = [sum(run.width for run in each) for each in runs]
    tokens = sum(load.ablated + load.plain + load.held_out for load in loads)
    # dictionaries of all layers encode
    encodings = [load.ablated + load.held_out + load.vocabulary / layers for load in loads]
    encoded = [2 * shape.d_model * width * layers * n for width, n in zip(widths, encodings, strict=True)]
    unembedded = 2 * embedding * sum(load.passes for load in loads)
    rows = max([sum(weight_rows(run, study.layers) for run in each) for each in runs], default=0)
    weights = 4 * shape.d_model * rows * layers
    size = circuit_number_bytes(study)
    embedded = EMBEDDED_BYTES * embedding * any(each.vocabulary for each in loads)
    moved = sum(ENCODED_BYTES * width * layers * n for width, n in zip(widths, encodings, strict=True))
    # float64 is counted as float32
    load = forward_load(study, shape.layers, 0, 4) * tokens
    return Work(
        "cases",
        tokens=tokens,
        disk=1e6 * len(widths),
        memory=PROCESS_BYTES + 8 * (blocks + embedding) + weights + embedded + TRACING_BYTES,
        operations=tokens * forward(study, shape.layers) + unembedded + sum(encoded),
        jobs=len(study.cases),
        starts=len(study.cases),
        fixed_seconds=CASE_SECONDS * len(study.cases),
        gpu_load=load + GpuLoad(fp32_flops=sum(encoded) + unembedded, moved=moved),
        host_memory=PROCESS_BYTES,
        gpu_memory=model_bytes(study, size) + 4 * (blocks + embedding) + weights + embedded + TRACING_BYTES
        if widths
        else 0,
        read=weights * len(widths),
        files=10 * len(widths),
    )


def labels(study: Study, held_out: float) -> Work:
    """Returns the work of labelling features and of drawing circuits with labels.

    Each run has a job, which takes the layers one after the other. One job, or one per layer, scores in the model what
    labels say about next tokens, and one draws all circuits.
    """
    shape, layers = study.shape, len(study.layers)
    tokens = min(study.features.tokens or held_out, held_out)
    widths, fires = [], []
    for name in labelled_runs(study):
        run = study.runs.get(name)
        widths.append(run.width if run else shape.d_mlp)
        fires.append(firing(run) if run else FIRING_NEURONS * shape.d_mlp)
    features, fired = layers * sum(widths), tokens * layers * sum(fires)
    memory = LABEL_PROCESS_BYTES + tokens * (LABEL_TEXT_BYTES + LABEL_FIRING_BYTES * max(fires, default=0))
    return Work(
        "labels",
        tokens=tokens * len(widths),
        disk=features * LABEL_BYTES,
        memory=memory,
        jobs=max(1, len(widths)),
        starts=len(widths) + bool(widths) * (1 if study.grouped else layers) + bool(study.circuits.prompts),
        operations=SAID_SHARE * features * SAID_TOKENS * forward(study, study.shape.layers),
        host_memory=memory,
        fixed_seconds=features * LABEL_SECONDS
        + fired * LABEL_FIRING_SECONDS
        + DRAWING_SECONDS * len(study.circuits.prompts),
        read=fired * ACTIVATION_BYTES,
        files=2 * layers * len(widths),
    )


def labelled_runs(study: Study) -> list[str]:
    """Returns the names of the runs whose features are labelled. `neurons` is one of them if they are tabulated."""
    neurons = [] if study.features.neurons == 0 else [NEURONS]
    return [*study.runs, *neurons] if study.labels.runs is None else study.labels.runs


def exchange(study: Study) -> Work:
    """Returns the work of exporting dictionaries. Each run and format has a job, which holds one layer at a time."""
    layers, d = len(study.layers), study.shape.d_model
    sizes = [weight_bytes(study.runs[name], d, study.layers) for name in study.exported_runs]
    formats = len(study.exchange.formats)
    disk = formats * layers * sum(sizes)
    memory = PROCESS_BYTES + EXPORT_COPIES * max(sizes, default=0)
    return Work(
        "exchange",
        tokens=0,
        disk=disk,
        memory=memory,
        jobs=formats * len(sizes),
        starts=formats * len(sizes),
        host_memory=memory,
        fixed_seconds=disk / EXPORT_RATE,
        read=disk,
        files=2 * formats * layers * len(sizes),
    )
