"""Estimates the work of training dictionaries. On a GPU, the work is matrix products and moved bytes.

The factors are fitted to one measured step (docs/benchmarks/training.md): topk, d = 768, F = 24,576, k = 32, batch
8,192. This step took 2.247 ms on an H100 (3.02 TB/s and 735 TFLOP/s measured). The parts other than the encoder
product are:

- the search for candidates: 0.216 ms
- the choice of entries, the decoder and the gradients: 0.632 ms. These steps gather 5.25 rows per entry, 1.1
  times as fast as a copy does.
- Adam, norms, rounded copies and writing the gradients: 0.522 ms
- the sort of entries by feature: 0.039 ms
- other kernels on [token, d] arrays, and gaps between kernels: 0.433 ms

The numbers for dense steps (relu, jumprelu and batchtopk) are counted from the code, not measured.
"""

from ..activations.store import PREFETCH
from ..config import Run, Study
from ..config.activations import MLP_OUTPUTS
from ..dictionaries.kernels.fixed_k import MAX_K
from .sizes import (
    PROCESS_BYTES,
    activation_bytes,
    is_sparse,
    number_bytes,
    weight_bytes,
)
from .work import GpuLoad, Work

SEARCH, GATHERED, ENTRY_BYTES, ROW_PASSES = 1.6, 5.25 / 1.1, 450, 52
"""Fitted factors of a sparse step: passes over the scores, rows gathered per entry, bytes moved per entry, and passes
over a [token, d] array."""
STEP_BYTES = 38
"""Bytes moved per weight and step: 28 for Adam, 6 for norms and rounded copies, 4 for the gradient."""
STATE_BYTES = 18
"""Bytes of memory per weight: weight, gradient and two moments in float32, and a bfloat16 copy of the weight."""
DENSE_BYTES = 90
"""Bytes that a dense step moves per entry of the [token, feature] matrix, forward and backward together."""
DENSE_MEMORY, SPARSE_MEMORY = 20, 2.1
"""Bytes of memory per entry of the [token, feature] matrix, in dense steps and in steps with kernels. With kernels,
only the bfloat16 scores have the size of this matrix."""
IMPORT_COPIES = 3.2
"""Memory of an import, as a multiple of the dictionary's weights. Measured at d = 768, F = 24,576."""
PREFETCHED = PREFETCH + 1
"""Number of batches per site that are in memory before a step."""


def dictionaries(study: Study) -> Work:
    """Returns the work of training all runs. An imported run takes only disk space, and memory for its weights."""
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
        gpu_load=sum(loads, GpuLoad()) * layers,
        host_memory=PROCESS_BYTES,
        gpu_memory=max((_gpu_memory(sweep, d) for sweep in training), default=0),
        # prefetched rows of each site, about ten [token, d] arrays of a step, and the MLP that computes its outputs
        gpu_memory_replicated=(max([2, *(len(_sites(sweep)) for sweep in training)]) * PREFETCHED + 10) * rows
        + number_bytes(study) * (study.shape.mlp_weights + batch * study.shape.d_mlp),
        divisible_by=trained[0].width if trained else 0,
        can_split=True,
        read=sum(_read(study, sweep) for sweep in training) * layers,
        checkpoint=checkpoint,
        files=3 * len(study.runs) * layers,
    )


def training_operations(run: Run, d: int) -> float:
    """Returns the operations per token of training a run: 2 d F (encoder product) + 10 d k (sparse products) for topk
    and batchtopk, 12 d F for other runs."""
    return 2 * d * run.width + 10 * d * run.k if is_sparse(run) else 12 * d * run.width


def step_load(run: Run, d: int) -> GpuLoad:
    """Returns the GPU load of one step of one run."""
    tokens, scores = run.batch, run.batch * run.width
    update = GpuLoad(moved=STEP_BYTES * _weights(run, d), replicated=ROW_PASSES * 4 * tokens * d)
    # with split features the GPUs gather the input and each GPU's candidates, and sum reconstructions
    shared = GpuLoad(exchanged=tokens * (10 * d + 10 * run.k))
    if has_kernels(run):
        entries = tokens * run.k
        moved = SEARCH * 2 * scores + GATHERED * 2 * entries * d + ENTRY_BYTES * entries
        operations = 2 * scores * d
    else:
        moved, operations = DENSE_BYTES * scores, 10 * scores * d
    products = (
        GpuLoad(fp32_flops=operations) if run.precision == "float32" else GpuLoad(bf16_flops=operations)
    )
    return products + GpuLoad(moved=moved) + update + shared


def has_kernels(run: Run) -> bool:
    """Whether the run's steps on a GPU use the kernels for sparse products."""
    return run.act == "topk" and run.k <= MAX_K


def _sweep_load(study: Study, sweep: list[Run]) -> GpuLoad:
    """Returns the GPU load of a sweep at one layer: all steps of all runs, and MLP outputs that are not stored. Each of
    mlp_out and mlp_added is computed once for all runs."""
    d, total = study.shape.d_model, GpuLoad()
    for run in sweep:
        total += step_load(run, d) * (run.tokens / run.batch)
    if computed := _sites(sweep).intersection(MLP_OUTPUTS) - set(study.activations.sites):
        operations = len(computed) * 2 * study.shape.mlp_weights * max(run.tokens for run in sweep)
        total += (
            GpuLoad(fp32_flops=operations) if number_bytes(study) == 4 else GpuLoad(bf16_flops=operations)
        )
    return total


def _sites(sweep: list[Run]) -> set[str]:
    return {site for run in sweep for site in (run.site_in, run.site_out)}


def _read(study: Study, sweep: list[Run]) -> float:
    """Returns the bytes of activations that a sweep reads at one layer."""
    stored = {site if site in study.activations.sites else "mlp_in" for site in _sites(sweep)}
    return max(run.tokens for run in sweep) * activation_bytes(study) * len(stored)


def _weights(run: Run, d: int) -> float:
    return 2 * run.width * d


def _trained_bytes(run: Run, d: int) -> float:
    """Returns the bytes of a run's weights, gradients and two moments, and of the pre-activations of one batch."""
    return 16 * _weights(run, d) + run.batch * run.width * (4 if is_sparse(run) else 16)


def _gpu_memory(sweep: list[Run], d: int) -> float:
    """Returns the bytes of GPU memory of a sweep: the weights of all runs, and the scores of one run at a time."""
    scores = max(
        run.batch * run.width * (SPARSE_MEMORY if has_kernels(run) else DENSE_MEMORY) for run in sweep
    )
    return STATE_BYTES * sum(_weights(run, d) for run in sweep) + scores
