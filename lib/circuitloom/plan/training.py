"""What training dictionaries takes: on a GPU, a step's products and the bytes that it moves.

The parts are those of docs/benchmarks/training.md: 2.247 ms a step on an H100 (3.02 TB/s, 735 TFLOP/s measured) of
topk, d = 768, F = 24,576, k = 32, batch 8,192. What is counted is the bytes of each part; the factors before them
are what it took there. The search for candidates: 0.216 ms. The choice, the decoder and the gradients gather 5.25
rows an entry, in 0.632 ms: 1.1 times as fast as a copy. Adam, norms, rounded copies and the gradients' writing:
0.522 ms. The sort: 0.039 ms. The rest of the kernels, and the time between them, over [token, d]: 0.433 ms. Where
features are not few, all is dense, and bytes are counted in the code, not measured.
"""

from ..config import Run, Study
from .sizes import (
    PROCESS_BYTES,
    activation_bytes,
    forward_bytes,
    is_sparse,
    mlp_weights,
    number_bytes,
    weight_bytes,
)
from .work import Load, Work

MOST_K = 128
"""Where k is larger no kernel of ours chooses (lib/circuitloom/dictionaries/rows.py)."""
SEARCH, GATHERED, ENTRY_BYTES, ROW_PASSES = 1.6, 5.25 / 1.1, 450, 52
STEP_BYTES = 38
"""Moved a weight and step: Adam 28, norms and rounded copies 6, the gradient 4."""
STATE_BYTES = 18
"""Held a weight: float32 weights, gradients and two moments, and a rounded copy."""
DENSE_BYTES = 90
"""Moved an entry of the [token, feature] matrix, forwards and backwards, where all of it is computed."""
DENSE_HELD, SPARSE_HELD = 20, 2.1
"""Held an entry of it, in dense steps and by kernels, which keep its scores in bfloat16 alone."""
IMPORT_COPIES = 3.2
"""Of a dictionary's weights, that its import holds at once: measured at d=768, F=24,576."""
AHEAD = 4
"""Batches of each site that lie ready."""


def dictionaries(study: Study) -> Work:
    """What is imported costs its weights alone, on disk and, one run at a time, in memory."""
    d, layers = study.shape.d_model, len(study.layers)
    runs = study.runs.values()
    trained = [run for run in runs if not run.imported]
    # a checkpoint holds the weights and Adam's two moments
    disk = sum(weight_bytes(run, d) * (1 if run.imported else 4) for run in runs) * layers
    sweeps = [
        sum(_trained_bytes(run, d) for run in sweep if not run.imported) for sweep in study.sweeps.values()
    ]
    imported = [IMPORT_COPIES * weight_bytes(run, d) for run in runs if run.imported]
    training = [sweep for sweep in study.sweeps.values() if sweep and not sweep[0].imported]
    loads = [_sweep_load(study, sweep) for sweep in training]
    checkpoint = max((12 * sum(_weights(run, d) for run in sweep) for sweep in training), default=0)
    batch = max((run.batch for run in trained), default=0)
    rows = 4 * batch * d
    return Work(
        "dictionaries",
        tokens=sum(run.tokens for run in trained) * layers,
        disk=disk,
        memory=PROCESS_BYTES + max([*sweeps, *imported], default=0),
        operations=sum(run.tokens * training_operations(run, d) for run in trained) * layers,
        jobs=len(study.sweeps) * layers,
        starts=len(study.sweeps) * layers,
        load=sum(loads, Load()) * layers,
        host=PROCESS_BYTES,
        held=max((_held(sweep, d) for sweep in training), default=0),
        # rows read ahead of two sites, and about ten more in a step; the MLP whose outputs are computed
        beside=(2 * AHEAD + 10) * rows
        + number_bytes(study) * (mlp_weights(study.shape) + batch * study.shape.d_mlp),
        even=trained[0].width if trained else 0,
        splits=True,
        read=sum(_read(study, sweep) for sweep in training) * layers,
        checkpoint=checkpoint,
        files=3 * len(study.runs) * layers,
    )


def model_beside(study: Study) -> float:
    """GPU memory of the model, which each training job loads whole for one layer's MLP."""
    return forward_bytes(study, 0)


def training_operations(run: Run, d: int) -> float:
    """Operations a token: one dense encoder product and sparse rest, or twelve d F where features are not few."""
    return 2 * d * run.width + 10 * d * run.k if is_sparse(run) else 12 * d * run.width


def step_load(run: Run, d: int) -> Load:
    """One step of one run on a GPU."""
    tokens, scores = run.batch, run.batch * run.width
    update = Load(moved=STEP_BYTES * _weights(run, d), repeated=ROW_PASSES * 4 * tokens * d)
    # where GPUs share the features: the input, then each one's candidates, then the sum of reconstructions
    shared = Load(exchanged=tokens * (10 * d + 10 * run.k))
    if has_kernels(run):
        entries = tokens * run.k
        moved = SEARCH * 2 * scores + GATHERED * 2 * entries * d + ENTRY_BYTES * entries
        operations = 2 * scores * d
    else:
        moved, operations = DENSE_BYTES * scores, 10 * scores * d
    products = Load(full=operations) if run.precision == "float32" else Load(low=operations)
    return products + Load(moved=moved) + update + shared


def has_kernels(run: Run) -> bool:
    """Its steps are sparse on a GPU."""
    return run.act == "topk" and run.k <= MOST_K


def _sweep_load(study: Study, sweep: list[Run]) -> Load:
    """All steps of a sweep at one layer, and the outputs of the MLP, computed once for all of its runs."""
    d, total = study.shape.d_model, Load()
    for run in sweep:
        total += step_load(run, d) * (run.tokens / run.batch)
    if "mlp_out" in _sites(study, sweep) - set(study.activations.sites):
        operations = 2 * mlp_weights(study.shape) * max(run.tokens for run in sweep)
        total += Load(full=operations) if number_bytes(study) == 4 else Load(low=operations)
    return total


def _sites(study: Study, sweep: list[Run]) -> set[str]:
    return {site for run in sweep for site in (run.site_in, run.site_out)}


def _read(study: Study, sweep: list[Run]) -> float:
    """Bytes read of one layer."""
    stored = {site if site in study.activations.sites else "mlp_in" for site in _sites(study, sweep)}
    return max(run.tokens for run in sweep) * activation_bytes(study) * len(stored)


def _weights(run: Run, d: int) -> float:
    return 2 * run.width * d


def _trained_bytes(run: Run, d: int) -> float:
    """Weights, gradients, two moments; a batch of pre-activations."""
    return 16 * _weights(run, d) + run.batch * run.width * (4 if is_sparse(run) else 16)


def _held(sweep: list[Run], d: int) -> float:
    """GPU memory of a sweep: all its runs, and the scores of one at a time."""
    scores = max(run.batch * run.width * (SPARSE_HELD if has_kernels(run) else DENSE_HELD) for run in sweep)
    return STATE_BYTES * sum(_weights(run, d) for run in sweep) + scores
