"""Config of what jobs request from a cluster (Slurm, Kubernetes), and of whether they verify their inputs."""

from pydantic import PositiveInt

from .base import Section


class JobMemory(Section):
    """Memory that a job of each stage requests, in megabytes. Each retry of a job doubles the memory."""

    corpus: PositiveInt = 8_000
    """For the text during tokenizing and packing, and for the concept table."""
    language_model: PositiveInt = 16_000
    """For the model, its gradients and its optimizer."""
    activations: PositiveInt = 32_000
    """For the model, and two shards per layer. A smaller `activations.shard_rows` needs less."""
    dictionaries: PositiveInt = 32_000
    """For all runs of a sweep, with gradients and optimizer. Each weight needs 16 bytes."""
    evaluation: PositiveInt = 16_000
    """For the model, and the dictionaries of one layer."""
    features: PositiveInt = 32_000
    """For the model, one dictionary, and the activations of a group of features."""
    circuits: PositiveInt = 32_000
    """For the model, the dictionaries of all layers, and the graph before pruning."""
    cases: PositiveInt = 32_000
    """For the model, and the dictionaries of all layers."""
    catalog: PositiveInt = 4_000
    """For views and macros only."""
    report: PositiveInt = 16_000
    """For the results of queries over all tables."""


class JobRuntime(Section):
    """Time that a job of each stage requests, in minutes. Each retry of a job doubles the time."""

    corpus: PositiveInt = 240
    """For tokenizing, and the concept table."""
    language_model: PositiveInt = 720
    """For pretraining or copying the model, and its loss on held-out tokens."""
    activations: PositiveInt = 480
    """For one pass over the training tokens."""
    dictionaries: PositiveInt = 1440
    """For all runs of a sweep at one layer."""
    evaluation: PositiveInt = 240
    """For one pass over the held-out tokens per dictionary, and concept scores."""
    features: PositiveInt = 240
    """For two passes over the held-out tokens."""
    circuits: PositiveInt = 240
    """For one prompt, one behaviour, or the weights of all layers."""
    cases: PositiveInt = 480
    """For one case study."""
    catalog: PositiveInt = 30
    """For views and macros only."""
    report: PositiveInt = 60
    """For one page."""


class Resources(Section):
    """What jobs request from a cluster (Slurm, Kubernetes). On a single machine, only `verify_inputs` and Snakemake's
    option `--cores` have an effect."""

    threads: PositiveInt = 8
    """Number of CPU cores for each job that can use several. The number of cores changes the order in which floats are
    summed, and thus the last bits of results."""
    gpu: bool = False
    """Whether to request one GPU for each job that can use one."""
    partition: str | None = None
    """Slurm partition of jobs. With null, it is the cluster's default."""
    gpu_partition: str | None = None
    """Slurm partition of jobs that request a GPU. With null, it is `partition`."""
    memory: JobMemory = JobMemory()
    """Megabytes per job, by stage."""
    runtime: JobRuntime = JobRuntime()
    """Minutes per job, by stage."""
    verify_inputs: bool = True
    """Whether each job compares its inputs with their recorded checksums before it starts. With false, only sizes are
    compared, and the inputs are not read."""
