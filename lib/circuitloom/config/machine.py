"""The machine that a plan is made for, where it is not the one at hand."""

from pydantic import PositiveFloat, PositiveInt

from .base import Section


class Machine(Section):
    """Nodes with GPUs, as their data sheets have them. `snakemake plan` plans for it instead of measuring the machine
    it runs on; nothing else reads it."""

    name: str
    """What it is, in a few words."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus: PositiveInt
    """GPUs a node."""
    gpu_memory: PositiveFloat
    """Bytes of one GPU's memory."""
    gpu_operations: PositiveFloat
    """Operations a second of one GPU's matrix products in bfloat16 or float16, without sparsity."""
    gpu_operations_float32: PositiveFloat
    """Operations a second of one GPU in float32, without TF32."""
    gpu_bandwidth: PositiveFloat
    """Bytes a second of one GPU's memory."""
    gpu_link: PositiveFloat
    """Bytes a second, one way, from one GPU to the others of its node."""
    cores: PositiveInt
    """Processor cores a node."""
    memory: PositiveFloat
    """Bytes of a node's memory."""
    disk: PositiveFloat
    """Bytes of disk that results may take; shared by all nodes."""
    disk_write: PositiveFloat
    """Bytes a second that the disk takes from all nodes together."""
    disk_read: PositiveFloat
    """Bytes a second that the disk gives to all nodes together."""
    network: PositiveFloat
    """Bytes a second, one way, from one node to the others."""
    download: PositiveFloat = 125e6
    """Bytes a second from outside."""
