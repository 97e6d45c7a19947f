"""`Work` is the work of a stage, independent of the machine. `Cost` is what the stage costs on one machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuLoad:
    """Operations, memory traffic and communication on GPUs."""

    bf16_flops: float = 0.0
    """Floating-point operations of matrix products in bfloat16 or float16."""
    fp32_flops: float = 0.0
    """Floating-point operations of matrix products in float32."""
    moved: float = 0.0
    """Bytes of GPU memory that are read and written outside matrix products, by all GPUs of a job together."""
    replicated: float = 0.0
    """Bytes of GPU memory that each GPU of a job reads and writes, however many GPUs share the job."""
    exchanged: float = 0.0
    """Bytes that each GPU of a job receives from the other GPUs of the job."""

    def __add__(self, other: "GpuLoad") -> "GpuLoad":
        return GpuLoad(*(a + b for a, b in zip(self._parts, other._parts, strict=True)))

    def __mul__(self, factor: float) -> "GpuLoad":
        return GpuLoad(*(part * factor for part in self._parts))

    @property
    def _parts(self) -> tuple[float, ...]:
        return self.bf16_flops, self.fp32_flops, self.moved, self.replicated, self.exchanged


@dataclass(frozen=True)
class Work:
    """The work of all jobs of one stage."""

    stage: str
    tokens: float
    disk: float
    """Largest number of bytes that outputs and temporary files take on disk at one time."""
    memory: float
    """Largest number of bytes of memory that a job takes on a machine without GPU."""
    operations: float = 0.0
    """Floating-point operations."""
    jobs: int = 1
    """Number of jobs that can run in parallel."""
    starts: float = 1.0
    """Number of jobs to start."""
    exclusive: bool = False
    """Whether a job uses all cores and runs alone."""
    gpu_load: GpuLoad = GpuLoad()
    host_memory: float = 0.0
    """Largest number of bytes of main memory that a job takes if it uses a GPU."""
    gpu_memory: float = 0.0
    """Bytes of GPU memory that a job takes in total. These bytes can be split over the GPUs of the job."""
    gpu_memory_replicated: float = 0.0
    """Bytes of GPU memory that each GPU of a job takes, however many GPUs share the job."""
    divisible_by: int = 0
    """Number of features, which must divide evenly among the GPUs of a job. With 0, any number of GPUs is possible."""
    can_split: bool = False
    """Whether the code can split a job over several GPUs."""
    read: float = 0.0
    """Bytes of earlier stages' outputs that the jobs read."""
    written: float = 0.0
    """Bytes of activations that the jobs write."""
    sorted_activations: float = 0.0
    """Number of activations that the jobs sort and write to tables."""
    fixed_seconds: float = 0.0
    """Seconds of all jobs together that do not depend on the size of the model."""
    matched_activations: float = 0.0
    """Number of activations that a job matches with concepts."""
    checkpoint: float = 0.0
    """Bytes of the checkpoint of a job."""
    download: float = 0.0
    """Bytes that are downloaded."""
    files: float = 0.0
    """Number of output files."""


@dataclass(frozen=True)
class Cost:
    """What one stage costs on a machine."""

    stage: str
    tokens: float
    disk: float
    """Largest number of bytes that outputs and temporary files take on disk at one time."""
    memory: float
    """Largest number of bytes of memory that the jobs running in parallel take on one machine or node."""
    operations: float
    """Floating-point operations."""
    seconds: float
    """Time of the stage in seconds. Infinite if the stage does not fit on the machine."""
    network: float = 0.0
    """Bytes that are downloaded, exchanged between nodes, or transferred to and from a disk that nodes share."""
    gpu_memory: float = 0.0
    """Largest number of bytes of GPU memory that a job takes on each of its GPUs."""
    gpus_per_job: int = 0
    """Number of GPUs that share a job. 0 if the stage uses no GPU."""
    busy_gpus: int = 0
    """Number of GPUs that are in use at the same time."""
    parallel: int = 1
    """Number of jobs that run at the same time on a machine without GPUs."""
    bottleneck: str = ""
    """Name of the slowest of the operations and transfers that happen at the same time."""
