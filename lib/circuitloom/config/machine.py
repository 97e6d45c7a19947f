"""Config of the machine that `snakemake plan` plans for."""

from pydantic import PositiveFloat, PositiveInt

from .base import Section


class Machine(Section):
    """Nodes with GPUs, as their data sheets describe them. Only `snakemake plan` uses these numbers, instead of
    measurements."""

    name: str
    """Short description of the machine."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus: PositiveInt
    """Number of GPUs per node."""
    gpu_memory: PositiveFloat
    """Memory per GPU, in bytes."""
    gpu_operations: PositiveFloat
    """Speed of one GPU at dense matrix products in bfloat16 or float16, in FLOP/s."""
    gpu_operations_float32: PositiveFloat
    """Speed of one GPU at matrix products in float32 without TF32, in FLOP/s."""
    gpu_bandwidth: PositiveFloat
    """Memory bandwidth of one GPU, in bytes per second."""
    gpu_link: PositiveFloat
    """Bandwidth from one GPU to the other GPUs of its node, in one direction, in bytes per second."""
    cores: PositiveInt
    """Number of CPU cores per node."""
    memory: PositiveFloat
    """Memory per node, in bytes."""
    disk: PositiveFloat
    """Disk space for results, shared by all nodes, in bytes."""
    disk_write: PositiveFloat
    """Write bandwidth of the disk for all nodes together, in bytes per second."""
    disk_read: PositiveFloat
    """Read bandwidth of the disk for all nodes together, in bytes per second."""
    network: PositiveFloat
    """Bandwidth from one node to the other nodes, in one direction, in bytes per second."""
    download: PositiveFloat = 125e6
    """Download bandwidth, in bytes per second."""
