"""What a job asks for where an executor (Slurm, Kubernetes) places it; on one machine nothing is held back for it."""

from pydantic import PositiveInt

from .base import Section


class JobMemory(Section):
    """Megabytes that a job of a stage asks for; each retry asks for twice as many."""

    corpus: PositiveInt = 8_000
    """Text as it is tokenized and packed, and the table of concepts."""
    language_model: PositiveInt = 16_000
    """The model, its gradients and its optimiser."""
    activations: PositiveInt = 32_000
    """The model, and two shards of every layer: shrink `activations.shard_rows` to need less."""
    dictionaries: PositiveInt = 32_000
    """All runs of a sweep, with gradients and optimiser: 16 bytes a weight."""
    evaluation: PositiveInt = 16_000
    """The model, and a layer's dictionaries."""
    features: PositiveInt = 32_000
    """The model, a dictionary, and the activations of some features at a time."""
    circuits: PositiveInt = 32_000
    """The model, the dictionaries of all layers, and the graph before it is pruned."""
    cases: PositiveInt = 32_000
    """The model, and the dictionaries of all layers."""
    catalog: PositiveInt = 4_000
    """Views and macros alone."""
    report: PositiveInt = 16_000
    """The answers of queries over all tables."""


class JobRuntime(Section):
    """Minutes that a job of a stage asks for; each retry asks for twice as many."""

    corpus: PositiveInt = 240
    """Tokenizing, and the table of concepts."""
    language_model: PositiveInt = 720
    """Pretraining, or laying a model down; and measuring it."""
    activations: PositiveInt = 480
    """One pass of the training tokens."""
    dictionaries: PositiveInt = 1440
    """All runs of a sweep, on one layer."""
    evaluation: PositiveInt = 240
    """One pass of the held-out tokens a dictionary, and concepts."""
    features: PositiveInt = 240
    """Two passes over the held-out tokens."""
    circuits: PositiveInt = 240
    """One prompt or behaviour, or the weights of all layers."""
    cases: PositiveInt = 480
    """One case study."""
    catalog: PositiveInt = 30
    """Views and macros alone."""
    report: PositiveInt = 60
    """One page."""


class Resources(Section):
    """What a job asks for where an executor (Slurm, Kubernetes) places it; on one machine `--cores` alone counts."""

    threads: PositiveInt = 8
    """CPU cores of each job that can use several. Sums of floats, and so last bits, depend on it."""
    gpu: bool = False
    """Ask for one GPU for each job that can use one."""
    partition: str | None = None
    """Slurm's partition that jobs are sent to; null leaves the choice to the cluster."""
    gpu_partition: str | None = None
    """Slurm's partition for jobs that ask for a GPU; null: `partition`."""
    memory: JobMemory = JobMemory()
    """Megabytes a job, by stage."""
    runtime: JobRuntime = JobRuntime()
    """Minutes a job, by stage."""
