"""Helpers that all rules share; no rule."""

import os
from pathlib import Path

from snakemake.exceptions import WorkflowError

# offline unless the profile names the hub: read by huggingface_hub when it is first imported
if "hub" not in [config.get(stage, {}).get("source") for stage in ("corpus", "language_model")]:
    os.environ["HF_HUB_OFFLINE"] = "1"

from circuitloom.config import load
from circuitloom.provenance import code_hash

try:
    STUDY = load(config)
except ValueError as error:
    raise WorkflowError(f"circuitloom: config: {error}") from None

RESULTS = f"results/{STUDY.profile}"
TARGETS = {}


def section(stage):
    """The config of one stage as plain values, for `params`: only its change reruns the stage."""
    return getattr(STUDY, stage).model_dump(mode="json")


def code(script):
    """Hash of the library code that a script uses, for `params`: only its change reruns the script."""
    return code_hash(Path(workflow.basedir).parent / "scripts" / f"{script}.py")


def split_cores(jobs):
    """Threads of each of so many jobs that can run side by side."""
    return max(1, (workflow.cores or 1) // max(1, jobs))


def lock_results():
    """Hold results/PROFILE for this run, so that a second one is refused; a killed one leaves no lock behind."""
    from filelock import FileLock, Timeout

    Path(RESULTS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{RESULTS}/.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkflowError(f"circuitloom: another run is using {RESULTS}; wait for it, or choose another profile")
    # kept for as long as this process lives
    globals()["RESULTS_LOCK"] = lock
