"""The whole config of a profile: its sections, what they must agree on, and one clear line where they do not."""

import difflib
import re
from functools import cached_property
from typing import Any, TypeVar

from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError, model_validator

from .activations import Activations
from .base import Model
from .corpus import Corpus
from .dictionaries import Run, expand_sweep, run_name
from .evaluation import Evaluation
from .language_model import LanguageModel, Pretrain
from .shape import Shape, read_shape

M = TypeVar("M", bound=Model)


class Study(Model):
    """One profile: from which text, through which model, to which dictionaries."""

    profile: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
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
        for sweep, runs in self.sweeps.items():
            for run in runs:
                if run.site_in != "mlp_out" and run.site_in not in self.activations.sites:
                    raise ValueError(
                        f"dictionaries.{sweep}: reads {run.site_in}, which is not stored; add it to activations.sites"
                    )
            if len({run.batch for run in runs}) > 1:
                raise ValueError(
                    f"dictionaries.{sweep}: runs of a sweep read the same batches; give each `batch` a sweep of its own"
                )
        if "mlp_in" not in self.activations.sites and "mlp_out" in self.sites - set(self.activations.sites):
            raise ValueError(
                "activations.sites: mlp_out is recomputed from mlp_in; add mlp_in, or mlp_out itself"
            )
        return self

    @cached_property
    def shape(self) -> Shape:
        """Sizes of the language model."""
        return read_shape(self.language_model, self.corpus.context)

    @cached_property
    def layers(self) -> list[int]:
        """Layers that are cached and studied, in order."""
        layers = self.activations.layers
        return list(range(self.shape.layers)) if layers == "all" else sorted(set(layers))

    @property
    def sites(self) -> set[str]:
        """Sites that are stored, or read by a run."""
        return set(self.activations.sites) | {
            s for run in self.runs.values() for s in (run.site_in, run.site_out)
        }

    @cached_property
    def sweeps(self) -> dict[str, list[Run]]:
        """The runs of each sweep, lists expanded, each with its name."""
        names: dict[str, str] = {}
        sweeps: dict[str, list[Run]] = {}
        for sweep, keys in self.dictionaries.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", sweep):
                raise ValueError(
                    f"dictionaries.{sweep}: a sweep's name has letters, digits and _ only; rename it"
                )
            sweeps[sweep] = []
            for each in expand_sweep(self.training, keys):
                run = _validate(Run, each, f"dictionaries.{sweep}")
                usual = {key: value for key, value in self.training.items() if not isinstance(value, list)}
                run = run.model_copy(update={"name": run.name or run_name(run, usual)})
                if run.name in names:
                    raise ValueError(
                        f"dictionaries.{sweep}: two runs are named {run.name} (the other in {names[run.name]}); "
                        "change one, or give it a `name`"
                    )
                names[run.name] = sweep
                sweeps[sweep].append(run)
        return sweeps

    @property
    def runs(self) -> dict[str, Run]:
        """All runs by name."""
        return {run.name: run for runs in self.sweeps.values() for run in runs}


def load(config: dict[str, Any]) -> Study:
    """The validated study of a config.

    Raises ValueError with one line that names the key and the remedy.
    """
    return _validate(Study, config, "")


def _validate(model: type[M], keys: dict[str, Any], where: str) -> M:
    try:
        return model.model_validate(keys)
    except ValidationError as error:
        raise ValueError(_one_line(model, error, where)) from None


def _one_line(model: type[Model], error: ValidationError, where: str) -> str:
    """The first of a validation's errors, as the path of the key, what is wrong and what to do."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    # a union's tag (chronicle, files, path, ...) stands in the location but is no key of the config
    tags = {"chronicle", "files", "hub", "pretrain", "path"}
    location = [str(part) for i, part in enumerate(first["loc"]) if not (i == 1 and part in tags)]
    key = ".".join(([where] if where else []) + [part for part in location if "[" not in part])
    match first["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(location[-1], _known_keys(model), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "config/README.md lists the keys"
            return f"{key}: unknown key; {hint}"
        case "missing":
            return f"{key}: missing; set it (config/README.md says what it means)"
        case "value_error":
            text = str(context["error"])
            return f"{key}: {text}" if key and not text.startswith(key.split(".")[0]) else text
        case "union_tag_not_found":
            return f"{key}.source: missing; config/README.md lists the sources"
        case "union_tag_invalid":
            return f"{key}.source: {context['tag']!r} is not a source; choose from {context['expected_tags']}"
        case _:
            return f"{key}: {first['msg']}, not {first['input']!r}"


def _known_keys(model: type[Model]) -> list[str]:
    """Every key that the sections of `model` know."""
    keys = set(re.findall(r'"(\w+)": \{', str(TypeAdapter(model).json_schema()).replace("'", '"')))
    return sorted(keys | set(model.model_fields))
