"""Finishes Zarr groups that are outputs of the workflow."""

import warnings
from pathlib import Path

import zarr


def consolidate(group: Path) -> None:
    """Copy the metadata of a group's arrays into the group's own metadata. The group must be complete.

    Zarr then lists the arrays from there. Without this copy it lists the files of the folder, and warns about the
    hidden file that Snakemake adds to each output folder.
    """
    with warnings.catch_warnings():
        # readers without this extension of Zarr 3 ignore the copy
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group)
