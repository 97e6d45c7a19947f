"""The whole config of a study: its sections, what they must agree on, and one clear line where they do not."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from .activations import Activations
from .base import Section, as_list
from .cases import Cases
from .circuits import Circuits
from .corpus import Corpus
from .dictionaries import Run, expand_sweep, run_name
from .evaluation import Evaluation
from .features import Features
from .language_model import LanguageModel, Pretrain
from .machine import Machine
from .messages import one_line, unknown_key
from .model_shape import ModelShape, read_shape
from .resources import Resources

M = TypeVar("M", bound=Section)


class Study(Section):
    """One study: from which text, through which model, to which dictionaries."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the folder under results/."""
    seed: NonNegativeInt = 0
    """Seed of the generated corpus, the model's initial weights and the order of the activations."""
    corpus: Corpus
    """Where the text comes from; which keys it has depends on its `source`."""
    language_model: LanguageModel
    """Which model is studied; which keys it has depends on its `source`."""
    activations: Activations = Activations()
    """Which activations are cached."""
    training: dict[str, Any] = {}
    """Keys of a run that hold for all runs; a sweep's own keys come first."""
    dictionaries: dict[str, dict[str, Any]] = {}
    """Sweeps by name; a list as a key's value makes one run of each element."""
    evaluation: Evaluation = Evaluation()
    """On what, and how, dictionaries are scored."""
    features: Features = Features()
    """What is tabulated about every feature."""
    circuits: Circuits = Circuits()
    """Which prompts are traced."""
    cases: Cases = {}
    """Case studies by name; or the path of a file of them, or a list of paths, of which later ones add to the cases of
    earlier ones, key by key."""
    machine: Machine | None = None
    """The machine that a plan is made for; null: the one that makes the plan, measured."""
    resources: Resources = Resources()
    """What jobs ask for where an executor (Slurm, Kubernetes) places them; results depend on it in last bits only."""

    @model_validator(mode="after")
    def _agree(self) -> "Study":
        shape = self.shape
        if self.corpus.context > shape.context:
            raise ValueError(
                f"corpus.context: {self.corpus.context} exceeds the model's {shape.context}; lower it"
            )
        pretrained = isinstance(self.language_model, Pretrain)
        if pretrained and self.corpus.source != "chronicle" and not self.corpus.tokenizer:
            raise ValueError("corpus.tokenizer: a model that is pretrained brings no tokenizer; name one")
        missing = [layer for layer in self.layers if layer >= shape.layers]
        if missing:
            raise ValueError(
                f"activations.layers: the model has no layer {missing[0]}; choose from 0 to {shape.layers - 1}"
            )
        if shape.parallel and "resid_mid" in self.sites:
            raise ValueError(
                "activations.sites: this model runs attention and MLP in parallel and has no resid_mid; use resid_pre"
            )
        for sweep in self.sweeps:
            self._check_sweep(sweep)
        if "mlp_in" not in self.activations.sites and "mlp_out" in self.sites - set(self.activations.sites):
            raise ValueError(
                "activations.sites: mlp_out is recomputed from mlp_in; add mlp_in, or mlp_out itself"
            )
        self._trace_transcoders()
        for name in self.cases:
            self._check_case(name)
        return self

    def _check_sweep(self, sweep: str) -> None:
        """A sweep's runs read what is stored, in the same batches; or come from files that are there."""
        key, runs = f"dictionaries.{sweep}", self.sweeps[sweep]
        for run in runs:
            files = [Path(run.file(layer)) for layer in self.layers] if run.imported else []
            missing = [file for file in files if not file.is_file()]
            if missing:
                raise ValueError(
                    f"{key}.files: {missing[0]} does not exist ({len(missing)} of {len(files)} layers); download the "
                    "files with `hf download REPOSITORY --local-dir FOLDER`, or name the folder they are in"
                )
            if not run.imported and run.site_in != "mlp_out" and run.site_in not in self.activations.sites:
                raise ValueError(
                    f"{key}: reads {run.site_in}, which is not stored; add it to activations.sites"
                )
        if len({run.batch for run in runs}) > 1:
            raise ValueError(
                f"{key}: runs of a sweep read the same batches; give each `batch` a sweep of its own"
            )

    def _trace_transcoders(self) -> None:
        """Circuits go through runs of transcoders that are there."""
        named = {f"circuits.prompts.{name}.run": prompt.run for name, prompt in self.circuits.prompts.items()}
        for key, run in {"circuits.run": self.circuits.run, **named}.items():
            if run is not None and run not in self.transcoders:
                known = ", ".join(self.transcoders) or "none: add a sweep of them"
                raise ValueError(f"{key}: {run} is no run of transcoders; choose from {known}")
        for name, behaviour in self.circuits.behaviours.items():
            for run in behaviour.runs or []:
                if run not in self.runs:
                    known = ", ".join(self.runs) or "none: add a sweep"
                    raise ValueError(
                        f"circuits.behaviours.{name}.runs: there is no run {run}; choose from {known}"
                    )
        if self.circuits.prompts and not self.transcoders:
            raise ValueError(
                "circuits.prompts: circuits go through transcoders; add a sweep of them to dictionaries"
            )

    def _check_case(self, name: str) -> None:
        """A case study goes through transcoders that are there, and beside runs that are."""
        if self.cases[name].generated and self.corpus.source != "chronicle":
            raise ValueError(
                f"cases.{name}: only the generated corpus has planted concepts; set corpus.source to chronicle, or "
                "take the case out"
            )
        run, *others = self.case_runs(name)
        known = ", ".join(self.transcoders) or "none: add a sweep of them"
        if not run or run not in self.transcoders:
            missing = f"{run} is no run of transcoders" if run else "case studies go through transcoders"
            raise ValueError(f"cases.{name}.run: {missing}; choose from {known}")
        for other in others:
            if other not in self.runs:
                raise ValueError(f"cases.{name}: there is no run {other}; choose from {', '.join(self.runs)}")

    def case_runs(self, name: str) -> list[str]:
        """The runs that a case study reads: the transcoders that it goes through first ("" where there are none)."""
        case = self.cases[name]
        return list(dict.fromkeys([case.run or self.traced_run or "", *case.runs_named]))

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes of the language model."""
        return read_shape(self.language_model, self.corpus.context)

    @cached_property
    def layers(self) -> list[int]:
        """Layers that are cached and studied, in order."""
        layers = self.activations.layers
        return list(range(self.shape.layers)) if layers == "all" else sorted(set(layers))

    @property
    def sites(self) -> set[str]:
        """Sites that are stored, or read where a run is trained."""
        trained = [run for run in self.runs.values() if not run.imported]
        return set(self.activations.sites) | {s for run in trained for s in (run.site_in, run.site_out)}

    @cached_property
    def sweeps(self) -> dict[str, list[Run]]:
        """The runs of each sweep, lists expanded, each with its name."""
        usual = self._usual()
        names: dict[str, str] = {}
        sweeps: dict[str, list[Run]] = {}
        for sweep, keys in self.dictionaries.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", sweep):
                raise ValueError(
                    f"dictionaries.{sweep}: a sweep's name has letters, digits and _ only; rename it"
                )
            _refuse_empty_lists(f"dictionaries.{sweep}", keys)
            sweeps[sweep] = []
            for each in expand_sweep(self.training, keys):
                run = _validate(Run, each, f"dictionaries.{sweep}")
                run = run.model_copy(update={"name": run.name or run_name(run, usual)})
                if sweeps[sweep] and run.imported != sweeps[sweep][0].imported:
                    raise ValueError(
                        f"dictionaries.{sweep}: some runs have `files` and some are trained; give each kind a sweep"
                    )
                if run.name in names:
                    raise ValueError(
                        f"dictionaries.{sweep}: two runs are named {run.name} (the other in {names[run.name]}); "
                        "change one, or give it a `name`"
                    )
                names[run.name] = sweep
                sweeps[sweep].append(run)
        return sweeps

    def _usual(self) -> dict[str, Any]:
        """The keys of `training` that have one value, as runs hold them; ValueError where one is wrong by itself."""
        _refuse_empty_lists("training", self.training)
        usual = {}
        for key, value in self.training.items():
            if key not in Run.model_fields:
                raise ValueError(unknown_key(Run, f"training.{key}"))
            try:
                values = [Run.read(key, each) for each in as_list(value)]
            except ValidationError as error:
                raise ValueError(one_line(Run, error, f"training.{key}")) from None
            if not isinstance(value, list):
                usual[key] = values[0]
        return usual

    @property
    def transcoders(self) -> list[str]:
        """Names of the runs of transcoders, in order."""
        return [name for name, run in self.runs.items() if run.kind == "transcoder"]

    @property
    def traced_run(self) -> str | None:
        """The transcoders that prompts are traced through, where they do not say so themselves."""
        return self.circuits.run or next(iter(self.transcoders), None)

    @property
    def runs(self) -> dict[str, Run]:
        """All runs by name."""
        return {run.name: run for runs in self.sweeps.values() for run in runs}


def load_study(config: dict[str, Any]) -> Study:
    """The validated study of a config.

    Raises ValueError with one line that names the key and the remedy.
    """
    if "profile" in config and "name" not in config:
        raise ValueError("profile: this key is called name now; rename it")
    return _validate(Study, config, "")


def _validate(model: type[M], keys: dict[str, Any], where: str) -> M:
    try:
        return model.model_validate(keys)
    except ValidationError as error:
        raise ValueError(one_line(model, error, where)) from None


def _refuse_empty_lists(where: str, keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        if value == []:
            raise ValueError(f"{where}.{key}: an empty list makes no run; give it a value, or leave it out")
