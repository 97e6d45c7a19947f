"""The work of a stage on any machine, and what it costs on one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuLoad:
    """Operations and memory traffic on GPUs."""

    bf16_flops: float = 0.0
    """Floating-point operations of matrix products in bfloat16 or float16."""
    fp32_flops: float = 0.0
    """Floating-point operations of matrix products in float32."""
    moved: float = 0.0
    """Bytes of GPU memory read and written outside those products."""
    replicated: float = 0.0
    """Bytes read and written by each of the GPUs that share a job."""
    exchanged: float = 0.0
    """Bytes that each of the GPUs that share a job receives from the others."""

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
    """Peak bytes of the outputs and temporary files."""
    memory: float
    """Peak bytes of a job on a machine without GPU."""
    operations: float = 0.0
    """Floating-point operations."""
    jobs: int = 1
    """Jobs that can run in parallel."""
    starts: float = 1.0
    """Number of jobs."""
    exclusive: bool = False
    """A job uses all cores."""
    gpu_load: GpuLoad = GpuLoad()
    host_memory: float = 0.0
    """Peak bytes of main memory of a job that uses a GPU."""
    gpu_memory: float = 0.0
    """Bytes of GPU memory of a job that can be split over several GPUs."""
    gpu_memory_replicated: float = 0.0
    """Bytes of GPU memory that each GPU of a job needs."""
    divisible_by: int = 0
    """The number of GPUs of a job must divide this number (of features); 0: any number."""
    can_split: bool = False
    """Whether the code can split a job over GPUs."""
    read: float = 0.0
    """Bytes of earlier stages' outputs that the jobs read."""
    written: float = 0.0
    """Bytes of activations that the jobs write."""
    sorted_activations: float = 0.0
    """Activations that the jobs sort and write to tables."""
    checkpoint: float = 0.0
    """Bytes of a job's checkpoint."""
    download: float = 0.0
    """Bytes downloaded."""
    files: float = 0.0
    """Number of output files."""


@dataclass(frozen=True)
class Cost:
    """What one stage costs on a machine."""

    stage: str
    tokens: float
    disk: float
    """Peak bytes of the outputs and temporary files."""
    memory: float
    """Peak bytes of the jobs that run in parallel on one machine or node."""
    operations: float
    """Floating-point operations."""
    seconds: float
    """Infinite if it does not fit."""
    network: float = 0.0
    """Bytes downloaded, exchanged between nodes, and read from and written to a disk that nodes share."""
    gpu_memory: float = 0.0
    """Peak bytes of GPU memory per GPU."""
    gpus_per_job: int = 0
    """GPUs that share a job; 0 if it uses none."""
    busy_gpus: int = 0
    """GPUs in use at a time."""
    bottleneck: str = ""
    """What takes longest of the operations and transfers that overlap."""
