"""Helpers for all rules. This file defines no rule."""

import os
import re
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# huggingface_hub reads this on import: offline unless the study uses the hub
STAGES = [config.get(stage) for stage in ("corpus", "language_model")]
if "hub" not in [keys.get("source") for keys in STAGES if isinstance(keys, dict)]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

from circuitloom.config import load_study
from circuitloom.config.cases import KINDS
from circuitloom.core.layout import BEHAVIOUR_TABLES, FEATURE_TABLES, NEURONS, Layout
from circuitloom.core.provenance import code_hash
from circuitloom.language_model.model_files import PICKLED, TEXT, WEIGHTS, matching

try:
    STUDY = load_study(config)
except ValueError as error:
    raise WorkflowError(f"circuitloom: config: {error}") from None

LAYOUT = Layout.of(STUDY.name)
MODEL_DTYPE = getattr(STUDY.language_model, "dtype", "float32")
TARGETS = {}
"""Stage to its results; each stage is a target rule of this name."""
# read by circuitloom.core.script in each job; not a parameter of the rules, so that a change reruns nothing
os.environ.update(CIRCUITLOOM_VERIFY_INPUTS=str(int(STUDY.resources.verify_inputs)))


def section(stage, *keys):
    """Config of one stage, or some of its keys, as plain values for `params`: a rule reruns when they change."""
    values = getattr(STUDY, stage).model_dump(mode="json")
    return {key: values[key] for key in keys or values}


def code(script):
    """Hash of the library code that a script imports, for `params`: the rule reruns when it changes."""
    return code_hash(Path(workflow.basedir).parent / "scripts" / f"{script}.py")


def split_cores(jobs, least=1):
    """Threads of one of `jobs` jobs that can run at the same time, at least `least`. With a GPU, jobs run one at a time.

    On a cluster each job gets `resources.threads`: its node's number of cores is unknown.
    """
    concurrent = 1 if shutil.which("nvidia-smi") else max(1, jobs)

    def threads(wildcards):
        # the executor is known only after the rules are read
        if workflow.remote_exec or workflow.non_local_exec:
            return max(least, STUDY.resources.threads)
        return max(least, workflow.cores // concurrent)

    return threads


def needs(stage, gpu=False):
    """Memory, time, GPU and partition of a stage's jobs, for `resources`; each retry doubles memory and time."""
    limits = STUDY.resources
    gpu = gpu and limits.gpu
    memory, runtime = getattr(limits.memory, stage), getattr(limits.runtime, stage)
    resources = {
        "mem_mb": lambda wildcards, attempt: memory * 2 ** (attempt - 1),
        "runtime": lambda wildcards, attempt: runtime * 2 ** (attempt - 1),
    }
    # executors request every named resource, even at zero
    if gpu:
        resources["gpu"] = 1
    partition = gpu and limits.gpu_partition or limits.partition
    if partition:
        resources["slurm_partition"] = partition
    return resources


def lock_results():
    """Lock results/STUDY for this run, so that a second run fails. The lock ends with the process, even if killed."""
    from filelock import FileLock, Timeout

    LAYOUT.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LAYOUT.lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkflowError(
            f"circuitloom: another run is using {LAYOUT.root}; wait for it, or choose another study"
        )
    # a reference that lives as long as this process
    globals()["RESULTS_LOCK"] = lock


def recheck_missing_folders():
    """Make the S3 plugin recheck folders that it found missing: it caches the answer, but a pod may create them."""
    plugin = sys.modules.get("snakemake_storage_plugin_s3")
    if plugin is None:
        return
    is_dir = plugin.StorageObject.is_dir

    def is_dir_now(folder):
        folder._is_dir = folder._is_dir or None
        return is_dir(folder)

    plugin.StorageObject.is_dir = is_dir_now


def corpus_tokenizer():
    """The configured tokenizer, else the language model's. None: chronicle's own, for a model pretrained here."""
    corpus, model = STUDY.corpus, STUDY.language_model
    name, revision = corpus.tokenizer, corpus.tokenizer_revision
    if name is None and model.source != "pretrain":
        name = model.path if model.source == "path" else model.name
        revision = None if model.source == "path" else model.revision
        if STUDY.shape.tokenizer:
            name, revision = STUDY.shape.tokenizer, None
    return {
        "name": name,
        "revision": revision,
        "model_vocabulary": STUDY.shape.vocabulary,
    }


def corpus_files():
    """Files of text and tokenizer that exist. The library reports missing ones, with the remedy."""
    corpus = STUDY.corpus
    files = [
        *getattr(corpus, "train", []),
        *(getattr(corpus, "validation", None) or []),
    ]
    files = [file for file in files if Path(file).is_file()]
    tokenizer = Path(corpus_tokenizer()["name"] or "")
    if tokenizer.name and tokenizer.is_dir():
        files += matching(tokenizer, TEXT)
    dataset = Path(getattr(corpus, "dataset", ""))
    if dataset.name and dataset.is_dir():
        files += [file for file in dataset.rglob("*") if file.is_file()]
    return sorted(map(str, files))


def model_files():
    """Files of a model in a folder, so that a changed file reruns its installation."""
    return sorted(
        map(str, matching(Path(STUDY.language_model.path), (*TEXT, *WEIGHTS, *PICKLED)))
    )


def stored_sites(runs):
    """Cached sites that the runs read. mlp_out is computed from mlp_in unless it is cached."""
    needed = {site for run in runs for site in (run.site_in, run.site_out)}
    stored = set(STUDY.activations.sites)
    return sorted(site if site in stored else "mlp_in" for site in needed)


def dictionary_folders(runs, layers):
    """Dictionary folders of runs at layers; a layer may be a wildcard."""
    return [LAYOUT.dictionary(run, layer) for run in runs for layer in layers]


def evaluation_files(runs, table, layers):
    """Files of one evaluation table, of runs at layers; a layer may be a wildcard."""
    return [
        LAYOUT.run_evaluation(run, layer, table) for run in runs for layer in layers
    ]


def together_runs(runs):
    """Names of the runs that are also scored with the MLPs of all layers replaced at once."""
    several = STUDY.evaluation.together and len(STUDY.layers) > 1
    return [run.name for run in runs if several and run.site_out == "mlp_out"]


def feature_files(run, layer):
    """Feature tables of one run and layer; both may be wildcards."""
    return [LAYOUT.feature_table(run, layer, table) for table in FEATURE_TABLES]


def traced_run(trace):
    """Run of transcoders that a prompt is traced through."""
    return STUDY.circuits.prompts[trace].run or STUDY.traced_run


def behaviour_tables(runs):
    """Tables of a behaviour; feature_effect needs a run on resid_mid."""
    resid_mid = any(STUDY.runs[run].site_out == "resid_mid" for run in runs)
    return [t for t in BEHAVIOUR_TABLES if resid_mid or t != "feature_effect"]


def rule_part(name):
    """A name with only the characters that a rule's name may have."""
    return re.sub(r"\W", "_", name)


def cases_of(kind):
    """Wildcard constraint: the cases of one kind."""
    names = [name for name, case in STUDY.cases.items() if case.kind == kind]
    return "|".join(map(re.escape, names)) or "(?!)"


def case_files(kind, case="{case}"):
    """Name to file of each output of a case study of one kind."""
    files = {table: f"{table}.parquet" for table in KINDS[kind].tables}
    files |= {figure: f"{figure}.png" for figure in KINDS[kind].figures}
    files["result"] = "result.md"
    return {name: LAYOUT.case(case) / file for name, file in files.items()}


def case_outputs(kind):
    """Outputs of a case study's rule; pictures appear in Snakemake's report."""
    files = case_files(kind)
    keys = {"caption": "../report/case.rst", "category": "Case studies"}
    pictures = {name: file for name, file in files.items() if file.suffix == ".png"}
    return files | {
        name: report(file, subcategory="{case}", **keys)
        for name, file in pictures.items()
    }


def case_dictionaries(wildcards):
    """Folders of the dictionaries that a case study reads."""
    return dictionary_folders(STUDY.case_runs(wildcards.case), STUDY.layers)


def case_matches(wildcards):
    """Tables that match concepts with the features of a case study's runs, and with neurons."""
    runs = STUDY.case_runs(wildcards.case)
    sweeps = [
        sweep
        for sweep, members in STUDY.sweeps.items()
        if any(run.name in runs for run in members)
    ]
    return [LAYOUT.concept_matches(sweep) for sweep in (*sweeps, None)]


def case_params(kind):
    """Parameters of a case study's rule."""
    return {
        "case": lambda wildcards: STUDY.cases[wildcards.case].model_dump(mode="json"),
        "runs": lambda wildcards: STUDY.case_runs(wildcards.case),
        "context": STUDY.corpus.context,
        "dtype": MODEL_DTYPE,
        "code": code(f"cases_{kind}"),
    }


def case_targets():
    """Files of all case studies."""
    return [
        file
        for name, case in STUDY.cases.items()
        for file in case_files(case.kind, name).values()
    ]
