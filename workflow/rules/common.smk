"""Helpers that all rules share; no rule."""

import os
import re
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# offline unless the study names the hub: read by huggingface_hub when it is first imported
STAGES = [config.get(stage) for stage in ("corpus", "language_model")]
if "hub" not in [keys.get("source") for keys in STAGES if isinstance(keys, dict)]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

from circuitloom.config import load
from circuitloom.config.cases import KINDS
from circuitloom.evaluation.names import NEURONS
from circuitloom.language_model.model_files import PICKLED, TEXT, WEIGHTS, matching
from circuitloom.core.provenance import code_hash

try:
    STUDY = load(config)
except ValueError as error:
    raise WorkflowError(f"circuitloom: config: {error}") from None

RESULTS = f"results/{STUDY.name}"
EVALUATION = f"{RESULTS}/evaluation"
MODEL_DTYPE = getattr(STUDY.language_model, "dtype", "float32")
TARGETS = {}


def section(stage, *keys):
    """The config of one stage, or some keys of it, as plain values for `params`: a rule depends on no other."""
    values = getattr(STUDY, stage).model_dump(mode="json")
    return {key: values[key] for key in keys or values}


def code(script):
    """Hash of the library code that a script uses, for `params`: only its change reruns the script."""
    return code_hash(Path(workflow.basedir).parent / "scripts" / f"{script}.py")


def split_cores(jobs, least=1):
    """Threads, `least` or more, of each of so many jobs that can run side by side; one at a time where they share a GPU.

    A job that an executor places shares its cores with no other, and cannot know how many its machine has.
    """
    abreast = 1 if shutil.which("nvidia-smi") else max(1, jobs)

    def threads(wildcards):
        # which executor runs is known only once the rules are read
        if workflow.remote_exec or workflow.non_local_exec:
            return max(least, STUDY.resources.threads)
        return max(least, workflow.cores // abreast)

    return threads


def needs(stage, gpu=False):
    """What a job of a stage asks of an executor, for `resources`; each retry asks for twice the memory and time."""
    asked = STUDY.resources
    gpu = gpu and asked.gpu
    memory, runtime = getattr(asked.memory, stage), getattr(asked.runtime, stage)
    resources = {
        "mem_mb": lambda wildcards, attempt: memory * 2 ** (attempt - 1),
        "runtime": lambda wildcards, attempt: runtime * 2 ** (attempt - 1),
    }
    # executors take a resource that is named, even as zero, to be wanted
    if gpu:
        resources["gpu"] = 1
    partition = gpu and asked.gpu_partition or asked.partition
    if partition:
        resources["slurm_partition"] = partition
    return resources


def lock_results():
    """Hold results/STUDY for this run, so that a second one is refused; a killed one leaves no lock behind."""
    from filelock import FileLock, Timeout

    Path(RESULTS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{RESULTS}/.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkflowError(
            f"circuitloom: another run is using {RESULTS}; wait for it, or choose another study"
        )
    # kept for as long as this process lives
    globals()["RESULTS_LOCK"] = lock


def look_again_for_folders():
    """Have the S3 plugin look again for a folder that was not there: it keeps that answer, though a pod makes it."""
    plugin = sys.modules.get("snakemake_storage_plugin_s3")
    if plugin is None:
        return
    is_dir = plugin.StorageObject.is_dir

    def is_dir_now(folder):
        folder._is_dir = folder._is_dir or None
        return is_dir(folder)

    plugin.StorageObject.is_dir = is_dir_now


def corpus_tokenizer():
    """The tokenizer that is asked for, else the language model's; chronicle's own where a model is pretrained."""
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
    """The files of text and tokenizer; one that is missing is left to the library, which says what to do."""
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
    """The files of a model from a folder, so that a new one is noticed."""
    return sorted(
        map(str, matching(Path(STUDY.language_model.path), (*TEXT, *WEIGHTS, *PICKLED)))
    )


def activation_folder(site, layer):
    """The Zarr group of one site and layer."""
    return f"{RESULTS}/activations/{site}/layer{layer}.zarr"


def stored_sites(runs):
    """Sites whose stored activations the runs read; mlp_out is computed from mlp_in where it is not stored."""
    wanted = {site for run in runs for site in (run.site_in, run.site_out)}
    stored = set(STUDY.activations.sites)
    return sorted(site if site in stored else "mlp_in" for site in wanted)


def dictionary_folders(runs, layers):
    """The folders of runs, each with all its layers; a layer may be a wildcard."""
    return [
        f"{RESULTS}/dictionaries/{run}/layer{layer}" for run in runs for layer in layers
    ]


def evaluation_files(runs, table, layers):
    """The files of one table, of runs and layers."""
    return [
        f"{EVALUATION}/{run}/layer{layer}/{table}.parquet"
        for run in runs
        for layer in layers
    ]


def baseline_file(site):
    """The baseline table of one site."""
    return f"{EVALUATION}/baseline/{site}/baseline.parquet"


def together_runs(runs):
    """Names of the runs that are also scored with all layers replaced at once."""
    several = STUDY.evaluation.together and len(STUDY.layers) > 1
    return [run.name for run in runs if several and run.site_out == "mlp_out"]


def feature_files(run, layer):
    """The feature tables of one run and layer; both may be wildcards."""
    tables = ("feature", "histogram", "activation", "code", "example", "logit")
    return [
        f"{RESULTS}/features/{run}/layer{layer}/{table}.parquet" for table in tables
    ]


def traced_run(trace):
    """The transcoders that a prompt is traced through."""
    return STUDY.circuits.prompts[trace].run or STUDY.traced_run


def component_tables(runs):
    """Tables of a behaviour; features act on features where there are some of resid_mid."""
    stream = any(STUDY.runs[run].site_out == "resid_mid" for run in runs)
    return ["causal", "faithfulness", *(["feature_effect"] if stream else [])]


def rule_part(name):
    """A name as part of a rule's."""
    return re.sub(r"\W", "_", name)


def cases_of(kind):
    """A wildcard's constraint to the cases of one kind."""
    names = [name for name, case in STUDY.cases.items() if case.kind == kind]
    return "|".join(map(re.escape, names)) or "(?!)"


def case_files(kind):
    """What a case of one kind writes, by name."""
    known = KINDS[kind]
    tables = {table: f"{table}.parquet" for table in known.tables}
    figures = {figure: f"{figure}.png" for figure in known.figures}
    files = {**tables, **figures, "result": "result.md"}
    return {name: f"{RESULTS}/cases/{{case}}/{file}" for name, file in files.items()}


def case_outputs(kind):
    """The outputs of a rule; pictures go into the workflow's report."""
    files = case_files(kind)
    keys = {"caption": "../report/case.rst", "category": "Case studies"}
    pictures = {name: file for name, file in files.items() if file.endswith(".png")}
    return files | {
        name: report(file, subcategory="{case}", **keys)
        for name, file in pictures.items()
    }


def case_dictionaries(wildcards):
    """The folders of the dictionaries that a case reads."""
    return dictionary_folders(STUDY.case_runs(wildcards.case), STUDY.layers)


def case_matches(wildcards):
    """Where features of a case's runs, and neurons, were matched with concepts."""
    wanted = STUDY.case_runs(wildcards.case)
    sweeps = [
        sweep
        for sweep, runs in STUDY.sweeps.items()
        if any(run.name in wanted for run in runs)
    ]
    parts = [*(f"concept/{sweep}" for sweep in sweeps), "basis"]
    return [f"{EVALUATION}/{part}/feature_concept.parquet" for part in parts]


def case_params(kind):
    """What a case's job is told."""
    return {
        "case": lambda wildcards: STUDY.cases[wildcards.case].model_dump(mode="json"),
        "runs": lambda wildcards: STUDY.case_runs(wildcards.case),
        "context": STUDY.corpus.context,
        "dtype": MODEL_DTYPE,
        "code": code(f"cases_{kind}"),
    }


def case_targets():
    """What all cases write."""
    return [
        file.format(case=name)
        for name, case in STUDY.cases.items()
        for file in case_files(case.kind).values()
    ]
