"""The config of a study: its sections, and checks across sections."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from ..core.hub import is_hub_name
from ..core.layout import NEURONS
from .activations import MLP_OUTPUTS, Activations
from .base import Section, as_list
from .cases import Cases, CompareCase
from .circuits import Circuits
from .corpus import Corpus
from .dictionaries import Run, expand_sweep, run_name
from .evaluation import Evaluation
from .exchange import Exchange, refusal
from .features import Features
from .labels import Labels
from .language_model import HubModel, LanguageModel, Pretrain
from .machine import Machine
from .messages import one_line, unknown_key
from .model_shape import ModelShape, read_shape
from .published import PublishedSet, is_transcoder_circuits, recognise
from .resources import Resources

M = TypeVar("M", bound=Section)

RESERVED_SWEEPS = ("neurons", "together")
"""Names that sweeps cannot have, because the rules tabulate_neurons and evaluate_together exist."""
SMALL_MODEL = 100_000_000
"""Largest number of parameters of a model whose jobs are grouped by default. Its jobs take about as long as their
imports."""


class Study(Section):
    """The config of one study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the study and of its folder under results/."""
    seed: NonNegativeInt = 0
    """Seed of the generated corpus, the model's initial weights and the order of the activations."""
    corpus: Corpus
    """Source of the text. Its keys depend on `source`."""
    language_model: LanguageModel
    """The language model. Its keys depend on `source`."""
    activations: Activations = Activations()
    """The activation cache."""
    training: dict[str, Any] = {}
    """Keys that apply to all runs. A sweep can override these keys."""
    dictionaries: dict[str, dict[str, Any]] = {}
    """Sweeps by name. If the value of a key is a list, there is one run per element."""
    evaluation: Evaluation = Evaluation()
    """How dictionaries are scored."""
    features: Features = Features()
    """Feature tables."""
    circuits: Circuits = Circuits()
    """Traced prompts, behaviours and analysis of weights."""
    labels: Labels = Labels()
    """Short texts that say what features fire on."""
    cases: Cases = {}
    """Case studies by name, or the path of a YAML file with case studies, or a list of paths. A later file overrides
    keys of the same case study in earlier files."""
    exchange: Exchange = Exchange()
    """Dictionaries that are exported for other libraries."""
    machine: Machine | None = None
    """Machine for which `snakemake plan` estimates costs. With null, the command measures the machine on which it
    runs."""
    resources: Resources = Resources()
    """Resources that jobs request from a cluster (Slurm, Kubernetes). These keys change results only by rounding."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "Study":
        shape = self.shape
        if self.corpus.context > shape.context:
            raise ValueError(
                f"corpus.context: {self.corpus.context} exceeds the model's {shape.context}; lower it"
            )
        if (self.circuits.context or 0) > shape.context:
            raise ValueError(
                f"circuits.context: {self.circuits.context} exceeds the model's {shape.context}; lower it"
            )
        pretrained = isinstance(self.language_model, Pretrain)
        if pretrained and not self.corpus.generated and not self.corpus.tokenizer:
            raise ValueError(
                "corpus.tokenizer: a model pretrained here has no tokenizer of its own; name one"
            )
        missing = [layer for layer in self.layers if layer >= shape.layers]
        if missing:
            after_all = missing == [shape.layers] and any(run.files for run in self.runs.values())
            what = (
                f" (the stream after the last block, {missing[0] - 1}, has no name here)" if after_all else ""
            )
            raise ValueError(
                f"activations.layers: the model has no layer {missing[0]}{what}; choose from 0 to {shape.layers - 1}"
            )
        if shape.parallel and "resid_mid" in self.sites:
            raise ValueError(
                "activations.sites: this model runs attention and MLP in parallel and has no resid_mid; use resid_pre"
            )
        for sweep in self.sweeps:
            self._check_sweep(sweep)
        computed = self.sites.intersection(MLP_OUTPUTS) - set(self.activations.sites)
        if computed and "mlp_in" not in self.activations.sites:
            site = min(computed)
            raise ValueError(
                f"activations.sites: {site} is recomputed from mlp_in; add mlp_in, or {site} itself"
            )
        self._check_circuits()
        for name in self.cases:
            self._check_case(name)
        self._check_labels()
        self._check_exchange()
        return self

    def _check_sweep(self, sweep: str) -> None:
        """Check that imported files exist, that trained runs read cached sites, and that all runs have the same batch
        size."""
        key, runs = f"dictionaries.{sweep}", self.sweeps[sweep]
        for run in runs:
            if run.imported:
                self._check_import(key, run)
            elif run.site_in not in {*MLP_OUTPUTS, *self.activations.sites}:
                raise ValueError(
                    f"{key}: reads {run.site_in}, which is not cached; add it to activations.sites"
                )
            if run.is_cross_layer and self.activations.outliers.action == "drop":
                raise ValueError(
                    f"{key}: with activations.outliers.action: drop, layers would leave out different tokens, but a "
                    "cross-layer transcoder needs all layers of a token; set it to keep or cap"
                )
        if len({run.batch for run in runs}) > 1:
            raise ValueError(
                f"{key}: runs of a sweep read the same batches; use one sweep per value of `batch`"
            )

    def _check_import(self, key: str, run: Run) -> None:
        """Check that the files of an imported run have the study's layers, and are of its model."""
        if run.name in self.published:
            try:
                self.published[run.name].check_layers(self.layers, self.shape.layers, self.shape.d_model)
            except ValueError as error:
                raise ValueError(f"{key}.files: {error}") from error
            if self.shape.parallel and "resid_mid" in (run.site_in, run.site_out):
                raise ValueError(
                    f"{key}: reads or writes resid_mid, which this model lacks: it runs attention and MLP in parallel; "
                    "name dictionaries of another site"
                )
            return
        files = [Path(run.file(layer)) for layer in self.layers]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{key}.files: {missing[0]} does not exist ({len(missing)} of {len(files)} layers); download the "
                "files with `hf download REPOSITORY --local-dir FOLDER`, or name the folder they are in"
            )

    def _check_circuits(self) -> None:
        """Check that runs named under `circuits` exist, and that prompts are traced through transcoders."""
        named = {f"circuits.prompts.{name}.run": prompt.run for name, prompt in self.circuits.prompts.items()}
        for key, run in {"circuits.run": self.circuits.run, **named}.items():
            if run is not None and run not in self.traceable:
                known = ", ".join(self.traceable) or "none: add a sweep of transcoders"
                raise ValueError(f"{key}: {run} is no run of transcoders; choose from {known}")
        for name, behaviour in self.circuits.behaviours.items():
            if not behaviour.runs and self.traced_run is None:
                raise ValueError(
                    f"circuits.behaviours.{name}.runs: the study has no run of transcoders; name runs of SAEs, or add "
                    "a sweep of transcoders"
                )
            for run in behaviour.runs or []:
                if run not in self.runs:
                    known = ", ".join(self.runs) or "none: add a sweep"
                    raise ValueError(
                        f"circuits.behaviours.{name}.runs: there is no run {run}; choose from {known}"
                    )
        if self.circuits.prompts and not self.traceable:
            raise ValueError(
                "circuits.prompts: prompts are traced through transcoders; add a sweep of transcoders to dictionaries"
            )

    def _check_case(self, name: str) -> None:
        """Check that the runs named in a case study exist, and that the first run is a run of transcoders, or a
        cross-layer transcoder if the kind of case study takes one."""
        if self.cases[name].generated and not self.corpus.generated:
            raise ValueError(
                f"cases.{name}: only generated text has planted concepts; set corpus.source to chronicle or guilds, "
                "or remove the case study"
            )
        case = self.cases[name]
        if isinstance(case, CompareCase) and case.questions and self.corpus.source != "guilds":
            raise ValueError(
                f"cases.{name}.questions: {self.corpus.source} has no facts; set corpus.source to guilds, or name "
                "texts under prompts"
            )
        if self.cases[name].alone:
            return
        run, *others = self.case_runs(name)
        reason = self.cases[name].no_cross_layer
        for each in (run, *others):
            if reason and each in self.runs and self.runs[each].is_cross_layer:
                raise ValueError(f"cases.{name}.run: {each} is a cross-layer transcoder, and {reason}")
        allowed = self.transcoders if reason else self.traceable
        known = ", ".join(allowed) or "none: add a sweep of transcoders"
        if not run or run not in allowed:
            missing = f"{run} is no run of transcoders" if run else "a case study needs transcoders"
            raise ValueError(f"cases.{name}.run: {missing}; choose from {known}")
        possible = allowed if self.cases[name].kind == "compare" else list(self.runs)
        for other in others:
            if other not in possible:
                what = "no run of transcoders" if other in self.runs else "no run"
                raise ValueError(f"cases.{name}: there is {what} {other}; choose from {', '.join(possible)}")

    def _check_labels(self) -> None:
        """Check that labelled runs have feature tables."""
        tabulated = [*self.runs, *([] if self.features.neurons == 0 else [NEURONS])]
        for name in self.labels.runs or []:
            if name not in tabulated:
                known = ", ".join(tabulated) or "none: add a sweep"
                raise ValueError(f"labels.runs: {name} has no feature tables; choose from {known}")
        if self.labels.model is not None and not self.labels.model.runs and self.traced_run is None:
            raise ValueError(
                "labels.model.runs: the study has no run of transcoders; name the runs whose features are labelled"
            )
        for name in self.runs_labelled_by_model:
            if name not in tabulated:
                known = ", ".join(tabulated) or "none: add a sweep"
                raise ValueError(f"labels.model.runs: {name} has no feature tables; choose from {known}")

    @property
    def runs_labelled_by_model(self) -> list[str]:
        """Names of the runs whose features a language model labels."""
        model = self.labels.model
        if model is None:
            return []
        return list(dict.fromkeys(model.runs or [self.traced_run or ""]))

    def _check_exchange(self) -> None:
        """Check that exported runs exist, and that the formats can represent them."""
        for name in self.exported_runs:
            if name not in self.runs:
                known = ", ".join(self.runs) or "none: add a sweep"
                raise ValueError(f"exchange.runs: there is no run {name}; choose from {known}")
            for format_name in self.exchange.formats:
                if reason := refusal(format_name, self.runs[name], self.layers):
                    raise ValueError(f"exchange.formats: {reason}")

    @property
    def exported_runs(self) -> list[str]:
        """Names of the runs that are exported for other libraries."""
        exchange = self.exchange
        named = list(self.runs) if exchange.runs is None else list(dict.fromkeys(exchange.runs))
        return named if exchange.formats else []

    def case_runs(self, name: str) -> list[str]:
        """Returns the names of the runs that a case study reads. The first name is a run of transcoders, or empty if
        there are no transcoders. A case study that reads nothing of the study has no runs."""
        case = self.cases[name]
        if case.alone:
            return []
        return list(dict.fromkeys([case.first_run or self.traced_run or "", *case.runs_named]))

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes of the language model."""
        return read_shape(self.language_model, self.corpus.context)

    @property
    def tokenizer(self) -> tuple[str | None, str | None]:
        """Name and revision of the corpus' tokenizer: the configured one, or else that of the language model.

        A name with a revision is a hub name. The name is None if the model is pretrained here with the words of
        a generated corpus.
        """
        corpus, model = self.corpus, self.language_model
        if corpus.tokenizer is not None or isinstance(model, Pretrain):
            return corpus.tokenizer, corpus.tokenizer_revision
        if self.shape.tokenizer:
            return self.shape.tokenizer, "main"
        return (model.name, model.revision) if isinstance(model, HubModel) else (model.path, None)

    @property
    def uses_hub(self) -> bool:
        """Whether text, model, tokenizer or dictionaries come from the Hugging Face hub."""
        name, revision = self.tokenizer
        hub = "hub" in (self.corpus.source, self.language_model.source)
        files = (layer.weights for found in self.published.values() for layer in found.layers.values())
        dictionaries = any(file.local is None for file in files)
        return hub or dictionaries or (name is not None and is_hub_name(name, revision))

    @cached_property
    def layers(self) -> list[int]:
        """Layers that are cached and have dictionaries, in order."""
        layers = self.activations.layers
        return list(range(self.shape.layers)) if layers == "all" else sorted(set(layers))

    @property
    def grouped(self) -> bool:
        """Whether one job scores and tabulates all layers of a sweep, and one job traces all prompts of a run."""
        wanted = self.resources.group_jobs
        return self.shape.parameters <= SMALL_MODEL if wanted is None else wanted

    @property
    def sites(self) -> set[str]:
        """Sites that are cached, and sites that training needs."""
        trained = [run for run in self.runs.values() if not run.imported]
        return set(self.activations.sites) | {s for run in trained for s in (run.site_in, run.site_out)}

    @property
    def sweeps(self) -> dict[str, list[Run]]:
        """Maps the name of each sweep to its named runs."""
        return self.runs_and_files[0]

    @property
    def published(self) -> dict[str, PublishedSet]:
        """Maps the name of each imported run to its files. Runs with one pickled file per layer are left out."""
        return self.runs_and_files[1]

    @cached_property
    def runs_and_files(self) -> tuple[dict[str, list[Run]], dict[str, PublishedSet]]:
        """The values of `sweeps` and `published`."""
        shared = self._shared_keys()
        names: dict[str, str] = {}
        sweeps: dict[str, list[Run]] = {}
        published: dict[str, PublishedSet] = {}
        for sweep, keys in self.dictionaries.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", sweep):
                raise ValueError(
                    f"dictionaries.{sweep}: a sweep's name has letters, digits and _ only; rename it"
                )
            if sweep in RESERVED_SWEEPS:
                raise ValueError(f"dictionaries.{sweep}: a rule has this name; rename the sweep")
            _refuse_empty_lists(f"dictionaries.{sweep}", keys)
            sweeps[sweep] = []
            for combination in expand_sweep(self.training, keys):
                where = f"dictionaries.{sweep}"
                own = {key: combination[key] for key in keys}
                complete, files = _published_keys(where, own, combination)
                run = _validate(Run, complete, where)
                run = run.model_copy(update={"name": run.name or run_name(run, shared)})
                if sweeps[sweep] and run.imported != sweeps[sweep][0].imported:
                    raise ValueError(
                        f"dictionaries.{sweep}: some runs have `files` and some are trained; use one sweep for each"
                    )
                if sweeps[sweep] and run.is_cross_layer != sweeps[sweep][0].is_cross_layer:
                    raise ValueError(
                        f"dictionaries.{sweep}: cross-layer transcoders are trained in a job of all layers and other "
                        "runs in a job per layer; use one sweep for each"
                    )
                if run.name in names:
                    raise ValueError(
                        f"dictionaries.{sweep}: two runs are named {run.name} (the other in {names[run.name]}); "
                        "change one, or give it a `name`"
                    )
                names[run.name] = sweep
                sweeps[sweep].append(run)
                if files is not None:
                    published[run.name] = files
        return sweeps, published

    def _shared_keys(self) -> dict[str, Any]:
        """Returns the validated keys of `training` whose values are not lists. Raises ValueError if any key or value is
        invalid."""
        _refuse_empty_lists("training", self.training)
        shared = {}
        for key, value in self.training.items():
            if key not in Run.model_fields:
                raise ValueError(unknown_key(Run, f"training.{key}"))
            try:
                values = [Run.read(key, each) for each in as_list(value)]
            except ValidationError as error:
                raise ValueError(one_line(Run, error, f"training.{key}")) from None
            if not isinstance(value, list):
                shared[key] = values[0]
        return shared

    @property
    def transcoders(self) -> list[str]:
        """Names of the runs of transcoders, in order."""
        return [name for name, run in self.runs.items() if run.kind == "transcoder"]

    @property
    def traceable(self) -> list[str]:
        """Names of the runs that prompts can be traced through: transcoders, then cross-layer transcoders."""
        return [*self.transcoders, *(name for name, run in self.runs.items() if run.is_cross_layer)]

    @property
    def traced_run(self) -> str | None:
        """Default run of transcoders for prompts, weight tables, behaviours and case studies. Without one, it is the
        first cross-layer transcoder. None if the study has neither."""
        return self.circuits.run or next(iter(self.traceable), None)

    def run_of_prompt(self, name: str) -> str:
        """Returns the run that a prompt of `circuits.prompts` is traced through: its own, or `traced_run`."""
        run = self.circuits.prompts[name].run or self.traced_run
        assert run is not None
        return run

    @property
    def runs(self) -> dict[str, Run]:
        """All runs by name."""
        return {run.name: run for runs in self.sweeps.values() for run in runs}


def load_study(config: dict[str, Any]) -> Study:
    """Returns the study of a config. If the config is invalid, raises ValueError with one line: the key and the
    remedy."""
    if "profile" in config and "name" not in config:
        raise ValueError("profile: this key is now called name; rename it")
    return _validate(Study, config, "")


def _validate(model: type[M], keys: dict[str, Any], where: str) -> M:
    try:
        return model.model_validate(keys)
    except ValidationError as error:
        raise ValueError(one_line(model, error, where)) from None


def _refuse_empty_lists(where: str, keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        if value == []:
            raise ValueError(f"{where}.{key}: an empty list makes no run; give it a value, or remove it")


def _published_keys(
    where: str, own: dict[str, Any], keys: dict[str, Any]
) -> tuple[dict[str, Any], PublishedSet | None]:
    """Returns the keys of a run with those that its published files determine, and the files.

    `own` are the keys that the sweep itself states. The values of `training` do not apply to an imported run. Returns
    `keys` and None if the run is trained, if a key is invalid, or if the files are pickled.
    """
    try:
        path, subfolder, revision, format = (
            Run.read(key, keys.get(key, Run.model_fields[key].default))
            for key in ("files", "subfolder", "revision", "format")
        )
        stated = {key: Run.read(key, own[key]) for key in own if key in Run.model_fields}
    # the validation of the run says what is wrong
    except ValidationError:
        return keys, None
    if path is None or is_transcoder_circuits(path, format):
        return keys, None
    found = recognise(path, subfolder, revision, format, stated, f"{where}.files")
    derived = found.keys()
    if found.first.kind is None and not {"kind", "site"} <= stated.keys():
        raise ValueError(
            f"{where}.site: {found.source} does not say what its dictionaries read; set kind and site (and reads for a "
            "transcoder of resid_mid)"
        )
    for key, value in derived.items():
        if key in stated and stated[key] != value:
            raise ValueError(
                f"{where}.{key}: {stated[key]}, but the files say {value}; correct it, or remove it"
            )
    return {**own, **derived}, found
