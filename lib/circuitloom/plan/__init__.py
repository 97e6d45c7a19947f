"""Estimates what a study will cost, on this machine or on a machine that a config describes."""

from .costs import check_disk, check_memory, plan
from .machine import MachineRates, calibrate, described
from .page import describe
from .sizes import corpus_tokens
from .work import Cost

__all__ = [
    "Cost",
    "MachineRates",
    "calibrate",
    "check_disk",
    "check_memory",
    "corpus_tokens",
    "describe",
    "described",
    "plan",
]
