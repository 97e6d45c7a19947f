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

The numbers for dense steps (relu, jumprelu and batchtopk) are counted from the code, not measured. So are those of
cross-layer transcoders: their decoders count once per output, and a job trains all layers.
"""

from collections.abc import Sequence

from ..activations.store import PREFETCH
from ..config import Run, Study
from ..config.activations import MLP_OUTPUTS
from ..dictionaries.kernels.fixed_k import MAX_K
from .sizes import (
    PROCESS_BYTES,
    activation_bytes,
    is_sparse,
    model_bytes,
    number_bytes,
    outputs_per_feature,
    weight_bytes,
)
from .work import GpuLoad, Work

ROWS_PER_ENTRY = 5.25
"""Rows that a sparse step reads or writes per entry, by count: three of them are decoder rows or gradients of
outputs."""
SEARCH, GATHERED, ENTRY_BYTES, ROW_PASSES = 1.6, ROWS_PER_ENTRY / 1.1, 450, 52
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
    disk = sum(weight_bytes(run, d, study.layers) * (1 if run.imported else 4) for run in runs) * layers
    training = [sweep for sweep in study.sweeps.values() if sweep and not sweep[0].imported]
    sweeps = [_sweep_bytes(study, sweep) for sweep in training]
    # of a cross-layer transcoder too, an import holds one layer at a time
    imported = [IMPORT_COPIES * weight_bytes(run, d, study.layers) for run in runs if run.imported]
    loads = [_sweep_load(study, sweep) for sweep in training]
    checkpoint = max(
        (
            12 * sum(_weights(run, d, study.layers) for run in sweep) * _job_layers(study, sweep)
            for sweep in training
        ),
        default=0,
    )
    jobs = sum(layers // _job_layers(study, sweep) for sweep in study.sweeps.values())
    batch = max((run.batch for run in trained), default=0)
    rows = 4 * batch * d
    # a job loads the model to compute MLP outputs that are not stored
    model = model_bytes(study) * any(_computed(study, sweep) for sweep in training)
    return Work(
        "dictionaries",
        tokens=sum(run.tokens for run in trained) * layers,
        disk=disk,
        memory=PROCESS_BYTES + max([*(each + model for each in sweeps), *imported], default=0),
        operations=sum(run.tokens * training_operations(run, d, study.layers) for run in trained) * layers,
        jobs=jobs,
        starts=jobs,
        gpu_load=sum(loads, GpuLoad()) * layers,
        host_memory=PROCESS_BYTES,
        gpu_memory=max((_gpu_memory(study, sweep) for sweep in training), default=0),
        # prefetched rows of each site, about ten [token, d] arrays of a step, and the MLP that computes its outputs
        gpu_memory_replicated=max([2, *(len(_sites(each)) * _job_layers(study, each) for each in training)])
        * PREFETCHED
        * rows
        + 10 * rows
        + number_bytes(study) * (study.shape.mlp_weights + batch * study.shape.d_mlp),
        divisible_by=trained[0].width if trained else 0,
        can_split=True,
        read=sum(_read(study, sweep) for sweep in training) * layers,
        checkpoint=checkpoint,
        files=3 * len(study.runs) * layers,
    )


def training_operations(run: Run, d: int, layers: Sequence[int] = (0,)) -> float:
    """Returns the operations per token and layer of training a run: 2 d F (encoder product) + 10 d k (sparse products)
    for topk and batchtopk, 12 d F for other runs. 6 d k and 6 d F of these are the decoder's, once per output."""
    more = 6 * (outputs_per_feature(run, layers) - 1)
    if is_sparse(run):
        return 2 * d * run.width + (10 + more) * d * run.k
    return (12 + more) * d * run.width


def step_load(run: Run, d: int, layers: Sequence[int] = (0,)) -> GpuLoad:
    """Returns the GPU load of one step of one run at one layer, as a mean over `layers`."""
    tokens, scores, outputs = run.batch, run.batch * run.width, outputs_per_feature(run, layers)
    update = GpuLoad(moved=STEP_BYTES * _weights(run, d, layers), replicated=ROW_PASSES * 4 * tokens * d)
    # with split features the GPUs gather the input and each GPU's candidates, and sum reconstructions
    shared = GpuLoad(exchanged=tokens * (10 * d + 10 * run.k))
    if has_kernels(run):
        entries = tokens * run.k
        gathered = GATHERED * (1 + 3 * (outputs - 1) / ROWS_PER_ENTRY)
        moved = SEARCH * 2 * scores + gathered * 2 * entries * d + ENTRY_BYTES * entries
        operations = 2 * scores * d
    else:
        moved, operations = DENSE_BYTES * scores, (10 + 6 * (outputs - 1)) * scores * d
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
        total += step_load(run, d, study.layers) * (run.tokens / run.batch)
    if computed := _computed(study, sweep):
        operations = len(computed) * 2 * study.shape.mlp_weights * max(run.tokens for run in sweep)
        total += (
            GpuLoad(fp32_flops=operations) if number_bytes(study) == 4 else GpuLoad(bf16_flops=operations)
        )
    return total


def _computed(study: Study, sweep: list[Run]) -> set[str]:
    """Returns the sites that a sweep needs and that are not stored, but computed from mlp_in."""
    return _sites(sweep).intersection(MLP_OUTPUTS) - set(study.activations.sites)


def _sites(sweep: list[Run]) -> set[str]:
    return {site for run in sweep for site in (run.site_in, run.site_out)}


def _read(study: Study, sweep: list[Run]) -> float:
    """Returns the bytes of activations that a sweep reads at one layer."""
    stored = {site if site in study.activations.sites else "mlp_in" for site in _sites(sweep)}
    return max(run.tokens for run in sweep) * activation_bytes(study) * len(stored)


def _job_layers(study: Study, sweep: list[Run]) -> int:
    """Returns the number of layers that a job of the sweep trains."""
    return len(study.layers) if sweep[0].is_cross_layer else 1


def _weights(run: Run, d: int, layers: Sequence[int]) -> float:
    """Returns the number of encoder and decoder weights at one layer, as a mean over `layers`."""
    return (1 + outputs_per_feature(run, layers)) * run.width * d


def _sweep_bytes(study: Study, sweep: list[Run]) -> float:
    """Returns the bytes of a job's weights, gradients and two moments, and of the pre-activations of one batch, which
    dense steps keep for all layers of the job."""
    d, layers = study.shape.d_model, _job_layers(study, sweep)
    weights = 16 * sum(_weights(run, d, study.layers) for run in sweep) * layers
    scores = (run.batch * run.width * (4 if is_sparse(run) else 16 * layers) for run in sweep)
    return weights + sum(scores)


def _gpu_memory(study: Study, sweep: list[Run]) -> float:
    """Returns the bytes of GPU memory of a job: the weights of all runs, and the scores of one run at a time. With
    kernels, scores exist for one layer at a time."""
    layers = _job_layers(study, sweep)
    scores = max(
        run.batch * run.width * (SPARSE_MEMORY if has_kernels(run) else DENSE_MEMORY * layers)
        for run in sweep
    )
    weights = sum(_weights(run, study.shape.d_model, study.layers) for run in sweep) * layers
    return STATE_BYTES * weights + scores
