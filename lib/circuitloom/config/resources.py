"""What jobs request from a cluster (Slurm, Kubernetes), and whether they verify their inputs."""

from pydantic import PositiveInt

from .base import Section


class JobMemory(Section):
    """Memory that a job of a stage requests, in megabytes; each retry doubles it."""

    corpus: PositiveInt = 8_000
    """The text while it is tokenized and packed, and the concept table."""
    language_model: PositiveInt = 16_000
    """The model, its gradients and its optimizer."""
    activations: PositiveInt = 32_000
    """The model, and two shards per layer; a smaller `activations.shard_rows` needs less."""
    dictionaries: PositiveInt = 32_000
    """All runs of a sweep, with gradients and optimizer: 16 bytes per weight."""
    evaluation: PositiveInt = 16_000
    """The model, and the dictionaries of one layer."""
    features: PositiveInt = 32_000
    """The model, one dictionary, and the activations of a group of features."""
    circuits: PositiveInt = 32_000
    """The model, the dictionaries of all layers, and the graph before pruning."""
    cases: PositiveInt = 32_000
    """The model, and the dictionaries of all layers."""
    catalog: PositiveInt = 4_000
    """Only views and macros."""
    report: PositiveInt = 16_000
    """Results of queries over all tables."""


class JobRuntime(Section):
    """Time that a job of a stage requests, in minutes; each retry doubles it."""

    corpus: PositiveInt = 240
    """Tokenizing, and the concept table."""
    language_model: PositiveInt = 720
    """Pretraining or copying the model, and its loss on held-out tokens."""
    activations: PositiveInt = 480
    """One pass over the training tokens."""
    dictionaries: PositiveInt = 1440
    """All runs of a sweep at one layer."""
    evaluation: PositiveInt = 240
    """One pass over the held-out tokens per dictionary, and concept scores."""
    features: PositiveInt = 240
    """Two passes over the held-out tokens."""
    circuits: PositiveInt = 240
    """One prompt, one behaviour, or the weights of all layers."""
    cases: PositiveInt = 480
    """One case study."""
    catalog: PositiveInt = 30
    """Only views and macros."""
    report: PositiveInt = 60
    """One page."""


class Resources(Section):
    """What jobs request from a cluster (Slurm, Kubernetes). On one machine only `--cores` and `verify_inputs` count."""

    threads: PositiveInt = 8
    """CPU cores per job that can use several. The order of float sums, and so the last bits, depends on it."""
    gpu: bool = False
    """Request one GPU for each job that can use one."""
    partition: str | None = None
    """Slurm partition of jobs; null: the cluster's default."""
    gpu_partition: str | None = None
    """Slurm partition of jobs that request a GPU; null: `partition`."""
    memory: JobMemory = JobMemory()
    """Megabytes per job, by stage."""
    runtime: JobRuntime = JobRuntime()
    """Minutes per job, by stage."""
    verify_inputs: bool = True
    """Before a job starts, compare its inputs with their recorded checksums; false: compare only sizes, without reading
    the inputs."""
