"""Says at the start what a run will do and how long it takes, and after each job how much is left. Defines no rule."""

import json
import logging
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from circuitloom.core.run_progress import RunProgress, measured_seconds


class JobCounter(logging.Handler):
    """Logs one line after each job of the study. Snakemake's own count also counts targets, which take no time."""

    def __init__(self, progress):
        super().__init__()
        self.progress = progress

    def emit(self, record):
        if getattr(record, "event", None) == LogEvent.JOB_FINISHED:
            if line := self.progress.finish(record.job_id):
                logger.info(line)


def stage_of(job):
    """Returns the stage of a job, or None for the target of a stage and for the plan."""
    script = Path(job.rule.script or "").name
    return next((stage for stage in TARGETS if script.startswith(f"{stage}_")), None)


def report_progress():
    """Log what this run will do. From now on, log one line after each job."""
    stages = {job: stage_of(job) for job in workflow.dag.jobs}
    needed = [job for job in workflow.dag.needrun_jobs() if stages[job]]
    if not needed:
        return
    # in the order of stages
    needed.sort(key=lambda job: list(TARGETS).index(stages[job]))
    progress = RunProgress(STUDY.name, {job.jobid: stages[job] for job in needed})
    logger.info(progress.opening())
    logger.addHandler(JobCounter(progress))
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(
                lambda record: getattr(record, "event", None) != LogEvent.PROGRESS
            )
    # the time on a cluster depends on its queue
    if workflow.remote_exec or workflow.non_local_exec:
        return
    times = {job: measured_seconds(Path(str(job.benchmark))) for job in needed}
    # the share of the cores that a job takes is the share of its time by which it lengthens the run
    measured = {
        job.jobid: seconds * job.threads / workflow.cores
        for job, seconds in times.items()
        if seconds is not None
    }
    if len(measured) == len(needed):
        progress.expect(measured, {})
        logger.info(progress.duration())
    else:
        counts = Counter(filter(None, stages.values()))
        # a start must not wait for the estimate
        estimate = threading.Thread(
            target=estimate_duration, args=(progress, measured, counts), daemon=True
        )
        estimate.start()


def estimate_duration(progress, measured, counts):
    """Log how long the run takes, from the plan and from the times in `measured`. `counts` has the jobs of each stage."""
    command = [sys.executable, "-m", "circuitloom.plan"]
    run = subprocess.run(
        command, input=json.dumps(config), capture_output=True, text=True, check=False
    )
    # without an estimate, lines have only the number of jobs
    if run.returncode == 0:
        seconds = json.loads(run.stdout)
        progress.expect(
            measured,
            {
                stage: seconds[stage] / counts[stage]
                for stage in counts
                if stage in seconds
            },
        )
        logger.info(progress.duration())
