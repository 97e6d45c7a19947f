"""What a plan is made of: the work of a stage, whatever the machine, and what it costs on one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What GPUs do."""

    low: float = 0.0
    """Operations of matrix products in bfloat16 or float16."""
    full: float = 0.0
    """Operations of matrix products in float32."""
    moved: float = 0.0
    """Bytes read and written in GPU memory beside those products."""
    repeated: float = 0.0
    """The same, by each of the GPUs that share a job."""
    exchanged: float = 0.0
    """Bytes that each of the GPUs that share a job gets from the others."""

    def __add__(self, other: "Load") -> "Load":
        return Load(*(a + b for a, b in zip(self._parts, other._parts, strict=True)))

    def __mul__(self, factor: float) -> "Load":
        return Load(*(part * factor for part in self._parts))

    @property
    def _parts(self) -> tuple[float, ...]:
        return self.low, self.full, self.moved, self.repeated, self.exchanged


@dataclass(frozen=True)
class Work:
    """What the jobs of one stage do together."""

    stage: str
    tokens: float
    disk: float
    """Bytes that stay, and lie there at the worst while it runs."""
    memory: float
    """Peak bytes of a job where there is no GPU."""
    operations: float = 0.0
    """Floating-point operations."""
    jobs: int = 1
    """Jobs that can run side by side."""
    starts: float = 1.0
    """Jobs in all."""
    alone: bool = False
    """A job takes all cores."""
    load: Load = Load()
    host: float = 0.0
    """Peak bytes of a job outside the GPU that it uses."""
    held: float = 0.0
    """Bytes of GPU memory that a job needs, and several GPUs can share."""
    beside: float = 0.0
    """Bytes of GPU memory that each of them needs."""
    even: int = 0
    """A number that the GPUs of a job have to divide (features); 0: none."""
    splits: bool = False
    """There is code that shares a job among GPUs."""
    read: float = 0.0
    """Bytes that its jobs read of what earlier stages wrote."""
    written: float = 0.0
    """Bytes that its jobs write."""
    sorted: float = 0.0
    """Activations that its jobs sort and write to tables."""
    checkpoint: float = 0.0
    """Bytes that a job saves from time to time."""
    download: float = 0.0
    """Bytes that come from outside."""
    files: float = 0.0
    """Files that stay."""


@dataclass(frozen=True)
class Cost:
    """What one stage takes on a machine."""

    stage: str
    tokens: float
    disk: float
    """Bytes that stay, and lie there at the worst while it runs."""
    memory: float
    """Peak bytes of the jobs that run side by side on one machine or node."""
    operations: float
    """Floating-point operations."""
    seconds: float
    """Infinite where it does not fit."""
    network: float = 0.0
    """Bytes that cross a network: from outside, between nodes, and to and from a disk that nodes share."""
    gpu: float = 0.0
    """Peak bytes of a GPU."""
    share: int = 0
    """GPUs that share a job; 0: it uses none."""
    busy: int = 0
    """GPUs in use at a time."""
    bound: str = ""
    """What takes the longest of what goes on at once."""
