"""Helpers for all rules. This file defines no rule."""

import os
import re
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import contains_wildcard

from circuitloom.config import load_study
from circuitloom.config.activations import MLP_OUTPUTS
from circuitloom.config.cases import KINDS
from circuitloom.config.dictionaries import IMPORT_KEYS
from circuitloom.config.published import commit_of
from circuitloom.config.yaml_files import refuse_repeated_keys
from circuitloom.core.layout import AGGREGATE_TABLES, BEHAVIOUR_TABLES
from circuitloom.core.layout import FEATURE_TABLES, TRACE_TABLES
from circuitloom.core.layout import NEURONS, Layout
from circuitloom.core.provenance import CodeHasher
from circuitloom.core.hub import is_hub_name
from circuitloom.language_model.model_files import source_files, text_files

try:
    # when Snakemake reads a file, a later key replaces an earlier one of the same name
    for file in filter(os.path.isfile, workflow.configfiles):
        refuse_repeated_keys(Path(file))
    STUDY = load_study(config)
except ValueError as error:
    raise WorkflowError(f"circuitloom: config: {error}") from None

# huggingface_hub reads HF_HUB_OFFLINE when a job imports it
if not STUDY.uses_hub:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
LAYOUT = Layout.of(STUDY.name)
CODE = CodeHasher(LAYOUT.root.parent / ".code.json")
MODEL_DTYPE = getattr(STUDY.language_model, "dtype", "float32")
JOB_LAYERS = STUDY.layers if STUDY.grouped else ["{layer}"]
"""Layers whose files a job writes. If jobs are not grouped, the wildcard `layer` is the only one."""
OF_LAYER = "" if STUDY.grouped else "_layer{layer}"
"""Suffix of the names of logs and benchmarks."""
TRACE_FILES = {table: f"{table}.parquet" for table in TRACE_TABLES}
TRACE_FILES |= {"graph": "graph.json"}
"""Maps the name of each output of a traced prompt to its file."""
TARGETS = {}
"""Maps each stage to its result files. Each stage is also a target rule with the stage's name."""
# circuitloom.core.script reads this variable in each job. It is not a parameter of the rules, so that a change of it
# does not rerun them.
os.environ.update(CIRCUITLOOM_VERIFY_INPUTS=str(int(STUDY.resources.verify_inputs)))


def section(stage, *keys):
    """Returns the config of a stage as plain values for `params`. If `keys` are given, returns only these keys.

    A rule reruns when its `params` change.
    """
    values = getattr(STUDY, stage).model_dump(mode="json")
    return {key: values[key] for key in keys or values}


def code(script):
    """Returns the hash of the library code that a script imports. As part of `params`, it makes a rule rerun when the
    code changes.
    """
    return CODE.code_hash(Path(workflow.basedir).parent / "scripts" / f"{script}.py")


def split_cores(jobs, least=1):
    """Returns a function for `threads` that divides the cores by `jobs`, the number of jobs that can run at one time.

    Each job gets at least `least` threads. If the machine has a GPU, jobs run one at a time and get all cores. On a
    cluster the number of cores of a node is unknown, so each job gets `resources.threads`.
    """
    concurrent = 1 if shutil.which("nvidia-smi") else max(1, jobs)

    def threads(wildcards):
        # Snakemake knows its executor only after it has read the rules
        if workflow.remote_exec or workflow.non_local_exec:
            return max(least, STUDY.resources.threads)
        return max(least, workflow.cores // concurrent)

    return threads


def needs(stage, gpu=False):
    """Returns memory, time, GPU and partition of a stage's jobs for `resources`. A retry doubles memory and time."""
    limits = STUDY.resources
    gpu = gpu and limits.gpu
    memory, runtime = getattr(limits.memory, stage), getattr(limits.runtime, stage)
    resources = {
        "mem_mb": lambda wildcards, attempt: memory * 2 ** (attempt - 1),
        "runtime": lambda wildcards, attempt: runtime * 2 ** (attempt - 1),
    }
    # an executor requests every resource that is named here, even if its value is 0
    if gpu:
        resources["gpu"] = 1
    partition = gpu and limits.gpu_partition or limits.partition
    if partition:
        resources["slurm_partition"] = partition
    return resources


def lock_results():
    """Lock results/STUDY for this run, so that a second run fails. The lock ends with this process, even if killed."""
    from filelock import FileLock, Timeout

    LAYOUT.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LAYOUT.lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise WorkflowError(
            f"circuitloom: another run is using {LAYOUT.root}; wait for it, or choose another study"
        )
    # the lock would be released if nothing referred to it
    globals()["RESULTS_LOCK"] = lock


def recheck_missing_folders():
    """Make the S3 plugin check again whether a missing folder exists.

    The plugin remembers that a folder is missing, but a pod may create it later.
    """
    plugin = sys.modules.get("snakemake_storage_plugin_s3")
    if plugin is None:
        return
    is_dir = plugin.StorageObject.is_dir

    def is_dir_now(folder):
        folder._is_dir = folder._is_dir or None
        return is_dir(folder)

    plugin.StorageObject.is_dir = is_dir_now


def corpus_tokenizer():
    """Returns name and revision of the corpus' tokenizer, and the vocabulary size of the language model."""
    name, revision = STUDY.tokenizer
    return {
        "name": name,
        "revision": revision,
        "model_vocabulary": STUDY.shape.vocabulary,
    }


def possible_inputs(files):
    """Returns the files that can be inputs of a rule. Snakemake takes {word} in a path for a wildcard, and has no way
    to quote it. The other files are parameters only (`file_states`).
    """
    return [file for file in files if not contains_wildcard(file)]


def file_states(files):
    """Returns the states of files as a parameter, {path: [size in bytes, modification time in ns]}.

    Snakemake compares times and would not notice that an older file has replaced an input (`mv`, `cp -p`).
    """
    states = {str(file): Path(file).stat() for file in files}
    return {file: [state.st_size, state.st_mtime_ns] for file, state in states.items()}


def corpus_files():
    """Returns the files of the text and the tokenizer that exist. The library reports missing files with a remedy."""
    corpus = STUDY.corpus
    splits = ["train", "validation"] if corpus.source == "files" else []
    files = {file for split in splits for file in corpus.files(split)}
    files = [file for file in files if Path(file).is_file()]
    name, revision = STUDY.tokenizer
    if name is not None and not is_hub_name(name, revision):
        files += text_files(Path(name))
    dataset = Path(getattr(corpus, "dataset", ""))
    if dataset.name and dataset.is_dir():
        files += [file for file in dataset.rglob("*") if file.is_file()]
    return sorted(map(str, files))


def model_files():
    """Returns the files of a language model in a local folder. The model is installed again if one of them changes."""
    return sorted(map(str, source_files(Path(STUDY.language_model.path))))


def job_layers(wildcards):
    """Returns the numbers of the layers whose files a job writes."""
    return STUDY.layers if STUDY.grouped else [int(wildcards.layer)]


def stored_sites(runs):
    """Returns the cached sites that the runs need. mlp_out and mlp_added are computed from mlp_in if not cached."""
    needed = {site for run in runs for site in (run.site_in, run.site_out)}
    stored = set(STUDY.activations.sites)
    return sorted(site if site in stored else "mlp_in" for site in needed)


def trained_layers(runs):
    """Returns the layers that a job of a sweep trains: all layers of cross-layer transcoders, else a wildcard."""
    return STUDY.layers if runs[0].is_cross_layer else ["{layer}"]


def scored_layers(runs):
    """Returns the layers that a job of a sweep scores. A score of a cross-layer transcoder needs all layers."""
    return STUDY.layers if runs[0].is_cross_layer else JOB_LAYERS


def layers_of_job(layers, wildcards):
    """Returns the numbers of `layers`, in which the wildcard `layer` stands for the layer of the job."""
    return [int(wildcards.layer)] if "{layer}" in layers else layers


def of_layer(layers):
    """Returns the suffix of the names of logs and benchmarks of a job of `layers`."""
    return "_layer{layer}" if "{layer}" in layers else ""


def dictionary_folders(runs, layers):
    """Returns the dictionary folders of all `runs` at all `layers`. A layer may be a wildcard."""
    return [LAYOUT.dictionary(run, layer) for run in runs for layer in layers]


def imported_files(runs, layers):
    """Returns the local files of imported runs at some layers: weights, and the settings next to them."""
    files = set()
    for run in runs:
        for layer in layers:
            if run.name in STUDY.published:
                files.update(STUDY.published[run.name].layers[layer].local_files())
            else:
                files.add(run.file(layer))
    return sorted(map(str, files))


def evaluation_files(runs, table, layers):
    """Returns the files of one evaluation table for all `runs` at all `layers`. A layer may be a wildcard."""
    return [
        LAYOUT.run_evaluation(run, layer, table) for run in runs for layer in layers
    ]


def together_runs(runs):
    """Returns the names of the runs that are also scored with the MLPs of all layers replaced at once."""
    several = STUDY.evaluation.together and len(STUDY.layers) > 1
    return [run.name for run in runs if several and run.site_out in MLP_OUTPUTS]


def feature_files(run, layer):
    """Returns the files of the feature tables of one run and layer. Both may be wildcards."""
    return [LAYOUT.feature_table(run, layer, table) for table in FEATURE_TABLES]


def label_weights(wildcards):
    """Returns the tables of connections and de-embeddings of a run, or no file if its weights are not analysed."""
    if wildcards.run != STUDY.traced_run:
        return []
    tables = ("connection", "deembedding")
    return [
        LAYOUT.weights(wildcards.run, layer) / f"{table}.parquet"
        for layer in STUDY.layers
        for table in tables
    ]


def traced_run(trace):
    """Returns the run of transcoders, or the cross-layer transcoder, that a prompt is traced through."""
    return STUDY.run_of_prompt(trace)


def behaviour_tables(runs):
    """Returns the names of a behaviour's tables. `feature_effect` is one of them only if a run writes to resid_mid.
    Tables of the common circuit need a run that prompts can be traced through."""
    made = {"causal", "faithfulness"}
    if any(STUDY.runs[run].site_out == "resid_mid" for run in runs):
        made.add("feature_effect")
    if any(run in STUDY.traceable for run in runs):
        made.update((*AGGREGATE_TABLES, "outcome"))
    return [table for table in BEHAVIOUR_TABLES if table in made]


def trace_outputs(traces):
    """Returns the outputs of a job that traces prompts. The name of a trace may be a wildcard."""
    return {
        name: [LAYOUT.trace(trace) / file for trace in traces]
        for name, file in TRACE_FILES.items()
    }


def label_files(runs):
    """Returns the files of labels of some runs. Rules call it as a function of their input, when all rules are read."""
    files = [file for file in TARGETS["labels"] if file.name == "label.parquet"]
    return [file for file in files if file.parent.parent.name in runs]


def rule_part(name):
    """Replaces the characters of `name` that a rule's name must not contain."""
    return re.sub(r"\W", "_", name)


def cases_of(kind):
    """Returns a wildcard constraint that matches the names of the case studies of one kind."""
    names = [name for name, case in STUDY.cases.items() if case.kind == kind]
    return "|".join(map(re.escape, names)) or "(?!)"


def case_files(kind, case="{case}"):
    """Maps the name of each output of a case study of this kind to its file."""
    files = {table: f"{table}.parquet" for table in KINDS[kind].tables}
    files |= {figure: f"{figure}.png" for figure in KINDS[kind].figures}
    files["result"] = "result.md"
    return {name: LAYOUT.case(case) / file for name, file in files.items()}


def case_outputs(kind):
    """Returns the outputs of the rule for one kind of case study. Pictures appear in Snakemake's report."""
    files = case_files(kind)
    keys = {"caption": "../report/case.rst", "category": "Case studies"}
    pictures = {name: file for name, file in files.items() if file.suffix == ".png"}
    return files | {
        name: report(file, subcategory="{case}", **keys)
        for name, file in pictures.items()
    }


def case_dictionaries(wildcards):
    """Returns the folders of the dictionaries that a case study reads."""
    return dictionary_folders(STUDY.case_runs(wildcards.case), STUDY.layers)


def case_concepts(wildcards):
    """Returns the table of the planted concepts, or no file if the case study does not need them."""
    needed = STUDY.cases[wildcards.case].generated
    return LAYOUT.corpus_table("concept") if needed else []


def case_matches(wildcards):
    """Returns the tables that match concepts with the features of a case study's runs and with neurons. None if the
    case study needs no concepts."""
    if not STUDY.cases[wildcards.case].generated:
        return []
    runs = STUDY.case_runs(wildcards.case)
    sweeps = [
        sweep
        for sweep, members in STUDY.sweeps.items()
        if any(run.name in runs for run in members)
    ]
    return [LAYOUT.concept_matches(sweep) for sweep in (*sweeps, None)]


def case_params(kind):
    """Returns the parameters of the rule for one kind of case study."""
    return {
        "case": lambda wildcards: STUDY.cases[wildcards.case].model_dump(mode="json"),
        "runs": lambda wildcards: STUDY.case_runs(wildcards.case),
        "context": STUDY.corpus.context,
        "dtype": STUDY.circuits.dtype,
        "code": code(f"cases_{kind}"),
    }


def case_targets():
    """Returns the output files of all case studies."""
    return [
        file
        for name, case in STUDY.cases.items()
        for file in case_files(case.kind, name).values()
    ]
