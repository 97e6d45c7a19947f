"""Config of what jobs request from a cluster (Slurm, Kubernetes), and of whether they verify their inputs."""

from pydantic import PositiveInt

from .base import Section


class JobMemory(Section):
    """Memory that a job of each stage requests, in megabytes. Each retry of a job doubles the memory."""

    corpus: PositiveInt = 8_000
    """Memory for the text during tokenizing and packing, and for the concept table."""
    language_model: PositiveInt = 16_000
    """Memory for the model, its gradients and its optimizer."""
    activations: PositiveInt = 32_000
    """Memory for the model, and for two shards per layer. A smaller `activations.shard_rows` needs less."""
    dictionaries: PositiveInt = 32_000
    """Memory for all runs of a sweep, with gradients and optimizer. Each weight needs 16 bytes."""
    evaluation: PositiveInt = 16_000
    """Memory for the model, and for the dictionaries of a sweep at one layer or at all layers."""
    features: PositiveInt = 32_000
    """Memory for the model, for the dictionaries of a sweep, and for the activations of a group of features."""
    circuits: PositiveInt = 32_000
    """Memory for the model, for the dictionaries of all layers, and for the graph before pruning."""
    labels: PositiveInt = 8_000
    """Memory for the activations of a layer, 14 bytes each, and for the held-out text, 150 bytes per token."""
    cases: PositiveInt = 32_000
    """Memory for the model, and for the dictionaries of all layers."""
    exchange: PositiveInt = 16_000
    """Memory for three copies of the dictionary of one layer."""
    catalog: PositiveInt = 4_000
    """Memory for views and macros."""
    report: PositiveInt = 16_000
    """Memory for the results of queries over all tables."""


class JobRuntime(Section):
    """Time that a job of each stage requests, in minutes. Each retry of a job doubles the time."""

    corpus: PositiveInt = 240
    """Time for tokenizing, and for the concept table."""
    language_model: PositiveInt = 720
    """Time for pretraining or copying the model, and for the model's loss on held-out tokens."""
    activations: PositiveInt = 480
    """Time for one pass over the training tokens."""
    dictionaries: PositiveInt = 1440
    """Time for all runs of a sweep at one layer."""
    evaluation: PositiveInt = 240
    """Time for one pass over the held-out tokens per dictionary of a job, or for all concept scores."""
    features: PositiveInt = 240
    """Time for two passes over the held-out tokens."""
    circuits: PositiveInt = 240
    """Time for one prompt or all prompts of a run, for one behaviour, or for the weights of all layers."""
    labels: PositiveInt = 240
    """Time for the features of a run in all layers."""
    cases: PositiveInt = 480
    """Time for one case study."""
    exchange: PositiveInt = 120
    """Time for the dictionaries of all layers of a run in one format."""
    catalog: PositiveInt = 30
    """Time for views and macros."""
    report: PositiveInt = 60
    """Time for one page."""


class Resources(Section):
    """Resources that jobs request from a cluster (Slurm, Kubernetes). On a single machine, only `verify_inputs` and
    Snakemake's option `--cores` have an effect."""

    threads: PositiveInt = 8
    """Number of CPU cores for each job that can use several. The number of cores changes results only by rounding."""
    gpu: bool = False
    """Whether to request one GPU for each job that can use one."""
    partition: str | None = None
    """Slurm partition of jobs. With null, the cluster's default is used."""
    gpu_partition: str | None = None
    """Slurm partition of jobs that request a GPU. With null, `partition` is used."""
    memory: JobMemory = JobMemory()
    """Megabytes per job, by stage."""
    runtime: JobRuntime = JobRuntime()
    """Minutes per job, by stage."""
    group_jobs: bool | None = None
    """Whether one job scores and tabulates all layers of a sweep, and one job traces all prompts of a run. Otherwise,
    each layer and prompt is a job of its own. With null, jobs are grouped for models of at most 100 million parameters,
    because starting a job takes seconds."""
    verify_inputs: bool = True
    """Whether each job first compares its inputs with their recorded checksums. With false, the job compares only file
    sizes."""
