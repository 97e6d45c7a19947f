"""`python -m tests.workflow.dag STUDY FILE`: pickle the jobs of a study, in order, with their `snakemake` objects."""

import pickle
import sys
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.script import Snakemake
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings


def jobs(study: Path) -> list[dict]:
    """Jobs of the project in the current folder that run a script; each comes after those whose outputs it reads."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[study]),
            snakefile=Path("workflow/Snakefile"),
        )
        workflow.dag(dag_settings=DAGSettings(forceall=True)).execute_workflow(executor="dryrun")
        # the public API does not give the jobs
        dag = workflow._workflow.dag
        return [_fields(job) for level in dag.toposorted() for job in level if job.rule.script]


def _fields(job) -> dict:
    script = Path(job.rule.script).name
    snakemake = Snakemake(
        job.input, job.output, job.params, job.wildcards, job.threads, job.resources, job.log, {},
        job.rule.name, None, "scripts",
    )  # fmt: skip
    return {
        "rule": job.rule.name,
        "script": f"scripts/{script}",
        "input": [str(path) for path in job.input],
        "output": [str(path) for path in job.output],
        "log": str(job.log[0]),
        "benchmark": str(job.benchmark),
        "snakemake": pickle.dumps(snakemake),
    }


if __name__ == "__main__":
    study, file = map(Path, sys.argv[1:])
    file.write_bytes(pickle.dumps(jobs(study)))
