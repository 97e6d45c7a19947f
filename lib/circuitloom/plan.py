"""What a study will cost: tokens, disk, memory, operations and hours, before anything runs."""

from dataclasses import dataclass, replace
from pathlib import Path

from .config import Run, Shape, Study
from .config.corpus import Files
from .config.corpus import Hub as HubCorpus
from .config.language_model import Pretrain
from .machine import Machine

CHRONICLE_WORDS = 1_500
BYTES_PER_TOKEN = 4.0
"""Of text, where no tokenizer is at hand to measure it."""
PROCESS_BYTES = 700e6
"""Memory of a process that has torch and transformers loaded."""
JOB_SECONDS = 8.0
"""Start of a job: Snakemake, imports, loading the model."""
SHARE_OF_PEAK = {
    "language_model": 0.38, "activations": 0.15, "dictionaries": 0.07, "evaluation": 0.08, "features": 0.2,
    "circuits": 0.05, "cases": 0.05,
}  # fmt: skip
"""Share of the measured matrix-product rate that each stage reaches: between those of two machines, of which the one
with half the rate reaches a fifth to twice as much more of it (docs/benchmarks/quickstart.md)."""
USUAL_L0 = 64
"""Features that fire on a token, where no k says so."""
FIRING_NEURONS = 0.4
"""Share of the neurons that are positive on a token."""
ACTIVATION_BYTES, EXAMPLE_BYTES, FEATURE_BYTES = 9, 90, 300
"""On disk, in all tables: of an activation, an example, a feature (docs/benchmarks/queries.md)."""
ACTIVATIONS_PER_SECOND = 2_000_000
"""Activations sorted and written by one job."""
TABULATING_BYTES = 600e6
"""What sorting and writing holds at once."""
TRACING_BYTES = 400e6
"""What is carried down the layers at once, and the effects of as many targets."""
CASE_TOKENS = 1_000_000
"""Tokens of a case's prompts, each counted once a pass with something ablated."""
IMPORT_COPIES = 3.2
"""Of a dictionary's weights, that its import holds at once: measured at d=768, F=24,576."""
TOKENS_PER_SECOND = 300_000
"""Text generated or tokenised, and packed, by one core."""


@dataclass(frozen=True)
class Cost:
    """What one stage takes."""

    stage: str
    tokens: float
    disk: float
    """Bytes that stay, and lie there at the worst while it runs."""
    memory: float
    """Peak bytes of the jobs that run side by side."""
    operations: float
    """Floating-point operations."""
    seconds: float


def plan(study: Study, machine: Machine) -> list[Cost]:
    """The cost of each stage, in order."""
    train, held_out = corpus_tokens(study)
    costs = [
        _corpus(study, train + held_out),
        _language_model(study, train),
        _activations(study, train),
        _dictionaries(study),
        _evaluation(study, held_out),
        _features(study, held_out),
        _circuits(study),
        _cases(study, held_out),
    ]
    seconds = {cost.stage: _seconds(cost, study, machine) for cost in costs}
    abreast = {
        "dictionaries": len(study.sweeps) * len(study.layers),
        "evaluation": len(study.layers),
        "features": (len(study.runs) + 1) * len(study.layers),
        "circuits": len(study.circuits.prompts) + len(study.circuits.behaviours) + bool(study.traced_run),
        "cases": len(study.cases),
    }
    return [
        replace(
            cost,
            memory=cost.memory * max(1, min(machine.jobs, abreast.get(cost.stage, 1))),
            seconds=seconds[cost.stage],
        )
        for cost in costs
    ]


def check_disk(costs: list[Cost], machine: Machine) -> None:
    """Raise ValueError, with the remedy, where the disk cannot hold what the stages write."""
    needed = sum(cost.disk for cost in costs)
    if needed > machine.free_bytes:
        largest = max(costs, key=lambda cost: cost.disk)
        raise ValueError(
            f"plan: the profile needs {needed / 1e9:.3g} GB and {machine.free_bytes / 1e9:.3g} GB are free; make room, "
            f"or lower what stage {largest.stage} writes ({largest.disk / 1e9:.3g} GB: fewer tokens, layers or sites)"
        )


def corpus_tokens(study: Study) -> tuple[float, float]:
    """Training and held-out tokens: as configured, or estimated from the files' sizes."""
    corpus = study.corpus
    if not isinstance(corpus, Files):
        return corpus.train_tokens, corpus.validation_tokens
    per_token = _bytes_per_token(study)
    train = sum(Path(file).stat().st_size for file in corpus.train if Path(file).exists()) / per_token
    if corpus.validation is None:
        held_out, train = train * corpus.validation_share, train * (1 - corpus.validation_share)
    else:
        held_out = (
            sum(Path(file).stat().st_size for file in corpus.validation if Path(file).exists()) / per_token
        )
    return min(train, corpus.train_tokens or train), min(held_out, corpus.validation_tokens or held_out)


def _bytes_per_token(study: Study) -> float:
    """Of the first text there is, where the tokenizer lies in a folder."""
    assert isinstance(study.corpus, Files)
    folder = study.corpus.tokenizer or getattr(study.language_model, "path", "")
    tokenizer, text = Path(folder) / "tokenizer.json", Path(study.corpus.train[0])
    if not tokenizer.is_file() or not text.is_file() or text.suffix == ".parquet":
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    with text.open(encoding="utf-8", errors="replace") as file:
        sample = file.read(100_000)
    return len(sample.encode()) / max(1, len(Tokenizer.from_file(str(tokenizer)).encode(sample)))


def model_parameters(shape: Shape) -> tuple[float, float]:
    """Weights of the blocks, and of the embedding."""
    mlp = (3 if shape.gated else 2) * shape.d_model * shape.d_mlp
    return shape.layers * (4 * shape.d_model**2 + mlp), (shape.vocabulary or CHRONICLE_WORDS) * shape.d_model


def _forward(study: Study, layers: float) -> float:
    """Operations a token of a forward pass through some of the layers, unembedding left out."""
    shape = study.shape
    blocks, _ = model_parameters(shape)
    attention = 4 * study.corpus.context * shape.d_model
    return layers * (2 * blocks / shape.layers + attention)


def _corpus(study: Study, tokens: float) -> Cost:
    wide = (study.shape.vocabulary or CHRONICLE_WORDS) > 2**16
    text = tokens * BYTES_PER_TOKEN * 0.5
    # a token and the number of its document; both and the text lie there twice until the parts are put together
    arrays = tokens * ((4 if wide else 2) + 4)
    return Cost("corpus", tokens, 2 * (arrays + text) + tokens, PROCESS_BYTES, 0.0, 0.0)


def _language_model(study: Study, train_tokens: float) -> Cost:
    blocks, embedding = model_parameters(study.shape)
    size = 4 * (blocks + embedding)
    model = study.language_model
    if not isinstance(model, Pretrain):
        return Cost("language_model", 0, size, PROCESS_BYTES + size, 0.0, 0.0)
    unembedding = 2 * embedding
    operations = 3 * model.tokens * (_forward(study, study.shape.layers) + unembedding)
    batch = model.batch * study.corpus.context * (study.shape.vocabulary or CHRONICLE_WORDS) * 6
    return Cost("language_model", model.tokens, 4 * size, PROCESS_BYTES + 4 * size + batch, operations, 0.0)


def _activations(study: Study, train_tokens: float) -> Cost:
    config, d = study.activations, study.shape.d_model
    rows = min(config.tokens or train_tokens, train_tokens)
    width = {"float16": 2, "bfloat16": 2, "int8": 1 + 4 / d}[config.dtype]
    arrays = len(study.layers) * len(config.sites)
    shard = min(config.shard_rows, rows) * d * width * len(study.layers)
    blocks, embedding = model_parameters(study.shape)
    memory = PROCESS_BYTES + 4 * (blocks + embedding) + 2 * shard
    operations = rows * len(config.sites) * _forward(study, max(study.layers) + 1)
    return Cost(
        "activations", rows * len(config.sites), rows * (d * width * arrays + 6), memory, operations, 0.0
    )


def _dictionaries(study: Study) -> Cost:
    """What is imported costs its weights alone, on disk and, one run at a time, in memory."""
    d, layers = study.shape.d_model, len(study.layers)
    runs = study.runs.values()
    trained = [run for run in runs if not run.imported]
    # a checkpoint holds the weights and Adam's two moments
    disk = sum(_weight_bytes(run, d) * (1 if run.imported else 4) for run in runs) * layers
    operations = sum(run.tokens * _training_step(run, d) for run in trained) * layers
    tokens = sum(run.tokens for run in trained) * layers
    sweeps = [
        sum(_trained_bytes(run, d) for run in sweep if not run.imported) for sweep in study.sweeps.values()
    ]
    imported = [IMPORT_COPIES * _weight_bytes(run, d) for run in runs if run.imported]
    memory = PROCESS_BYTES + max([*sweeps, *imported], default=0)
    return Cost("dictionaries", tokens, disk, memory, operations, 0.0)


def _weight_bytes(run: Run, d: int) -> float:
    return 4 * (2 * run.width * d + 2 * run.width)


def _training_step(run: Run, d: int) -> float:
    """Operations a token: one dense encoder product and sparse rest, or twelve d F where features are not few."""
    sparse = run.act in ("topk", "batchtopk")
    return 2 * d * run.width + 10 * d * run.k if sparse else 12 * d * run.width


def _trained_bytes(run: Run, d: int) -> float:
    """Weights, gradients, two moments; a batch of pre-activations."""
    sparse = run.act in ("topk", "batchtopk")
    return 16 * 2 * run.width * d + run.batch * run.width * (4 if sparse else 16)


def _evaluation(study: Study, held_out: float) -> Cost:
    shape, runs = study.shape, list(study.runs.values())
    tokens = min(study.evaluation.tokens or held_out, held_out)
    _, embedding = model_parameters(shape)
    whole = _forward(study, shape.layers) + 2 * embedding
    encode = sum(2 * shape.d_model * run.width for run in runs)
    passes = len(runs) * (len(study.layers) + 1) + 2 * (len(study.layers) + 1)
    operations = tokens * (passes * whole + 2 * len(study.layers) * encode)
    vocabulary = shape.vocabulary or CHRONICLE_WORDS
    memory = PROCESS_BYTES + study.evaluation.batch * study.corpus.context * vocabulary * 12
    return Cost("evaluation", tokens * passes, 1e6 * len(runs) * len(study.layers), memory, operations, 0.0)


def _features(study: Study, held_out: float) -> Cost:
    shape, config = study.shape, study.features
    tokens = min(config.tokens or held_out, held_out)
    firing: list[float] = [
        run.k if run.act in ("topk", "batchtopk") else USUAL_L0 for run in study.runs.values()
    ]
    widths = [run.width for run in study.runs.values()]
    if config.neurons != 0:
        firing.append(min(config.neurons or shape.d_mlp, FIRING_NEURONS * shape.d_mlp))
        widths.append(shape.d_mlp)
    layers, examples = len(study.layers), config.examples + config.bands * config.band_examples
    feature = FEATURE_BYTES + EXAMPLE_BYTES * examples
    disk = layers * (tokens * sum(firing) * ACTIVATION_BYTES + sum(widths) * feature)
    # what a pass lays down before it is sorted, of the jobs that run side by side
    disk += tokens * 2 * max(firing) * ACTIVATION_BYTES
    forward = len(firing) * sum(_forward(study, layer + 1) for layer in study.layers)
    encode = 2 * shape.d_model * sum(run.width for run in study.runs.values()) * layers
    blocks, embedding = model_parameters(shape)
    memory = PROCESS_BYTES + 4 * (blocks + embedding + 2 * max(widths) * shape.d_model) + TABULATING_BYTES
    return Cost("features", tokens * len(firing) * layers, disk, memory, tokens * (forward + encode), 0.0)


def _circuits(study: Study) -> Cost:
    """Each active feature is carried down through every attention below it, at each position."""
    shape, d = study.shape, study.shape.d_model
    operations = 0.0
    for prompt in study.circuits.prompts.values():
        run = study.runs[prompt.run or study.traced_run or ""]
        length = min(study.corpus.context, len(prompt.text.encode()) / BYTES_PER_TOKEN + 1)
        active = length * len(study.layers) * (run.k if run.act in ("topk", "batchtopk") else USUAL_L0)
        # twice a head's two matrices, and its pattern; down half of the layers on average
        operations += active * shape.layers / 2 * length * d * (8 * d + 4 * length)
        # what is read of each feature by each other
        operations += active**2 * d
    tokens = sum(len(prompt.text.encode()) / BYTES_PER_TOKEN for prompt in study.circuits.prompts.values())
    blocks, embedding = model_parameters(shape)
    width = max((study.runs[name].width for name in study.transcoders), default=0)
    weights = 4 * (2 * blocks + 2 * embedding + 2 * width * d * len(study.layers))
    memory = PROCESS_BYTES + weights + TRACING_BYTES
    return Cost("circuits", tokens, 1e6 * len(study.circuits.prompts), memory, operations, 0.0)


def _cases(study: Study, held_out: float) -> Cost:
    """Held-out tokens through the dictionaries of each case's runs, and prompts with components ablated."""
    shape = study.shape
    blocks, embedding = model_parameters(shape)
    tokens = min(study.evaluation.tokens or held_out, held_out)
    widths = [sum(study.runs[run].width for run in study.case_runs(name)) for name in study.cases]
    encoders = [2 * shape.d_model * width * len(study.layers) for width in widths]
    passes = len(widths) * (_forward(study, shape.layers) + 2 * embedding) + sum(encoders)
    memory = PROCESS_BYTES + 8 * (blocks + embedding) + 4 * max(encoders, default=0) + TRACING_BYTES
    operations = (tokens + CASE_TOKENS) * passes
    return Cost("cases", tokens * len(widths), 1e6 * len(widths), memory, operations, 0.0)


def _seconds(cost: Cost, study: Study, machine: Machine) -> float:
    jobs = {
        "corpus": 1,
        "language_model": 2,
        "activations": len(study.activations.sites) + 1,
        "dictionaries": len(study.sweeps) * len(study.layers) / machine.jobs,
        "evaluation": (len(study.sweeps) * (len(study.layers) + 1) + 4) / machine.jobs,
        "features": (len(study.runs) + 1) * len(study.layers) / machine.jobs,
        "circuits": (len(study.circuits.prompts) + 2 * len(study.circuits.behaviours) + 2) / machine.jobs,
        "cases": len(study.cases) / machine.jobs,
    }[cost.stage]
    if cost.stage == "corpus":
        work = cost.tokens / TOKENS_PER_SECOND
    else:
        work = cost.operations / (SHARE_OF_PEAK[cost.stage] * machine.operations_per_second)
    if cost.stage == "features":
        work += cost.disk / ACTIVATION_BYTES / ACTIVATIONS_PER_SECOND
    download = 30e6 if isinstance(study.corpus, HubCorpus) and cost.stage == "corpus" else 0
    return work + jobs * JOB_SECONDS + (cost.disk / download if download else 0)
