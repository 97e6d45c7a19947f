"""What an export reads: the dictionaries of a run, and what other libraries must know of the language model."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.layout import Layout
from ..dictionaries.cross_layer import LayerDictionary, load_layer, run_names
from ..dictionaries.dictionary import CONFIG, WEIGHTS
from ..language_model.anatomy import Anatomy, read_anatomy
from ..language_model.model_files import SOURCE
from .record import sha256


class StoredRun(Mapping[int, LayerDictionary]):
    """The dictionaries of a run by layer. Each is loaded when it is asked for, and not kept."""

    def __init__(self, results: Path, name: str, layers: Sequence[int] | None = None) -> None:
        """`results` is the folder of a study. By default, `layers` are all layers with a dictionary.

        Raises ValueError if the run or one of `layers` is missing.
        """
        self.results, self.name = results, name
        self._layout = Layout(results)
        found = _layers_of(self._layout.dictionaries / name)
        if not found:
            known = ", ".join(run_names(results)) or "none: run `snakemake dictionaries`"
            raise ValueError(f"{results} has no run {name}; choose from {known}")
        missing = [layer for layer in layers or () if layer not in found]
        if missing:
            raise ValueError(
                f"run {name} has no dictionary of layer {missing[0]}; choose from {', '.join(map(str, found))}"
            )
        self._numbers = sorted(set(layers)) if layers else found

    def __getitem__(self, layer: int) -> LayerDictionary:
        if layer not in self._numbers:
            raise KeyError(layer)
        return load_layer(self.folder(layer))

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def folder(self, layer: int) -> Path:
        """Returns the folder of the dictionary of `layer`."""
        return self._layout.dictionary(self.name, layer)

    def digest(self, layer: int) -> str:
        """Returns the SHA-256 of the files that the dictionary of `layer` is read from."""
        digests = [sha256(self.folder(layer) / name) for name in (WEIGHTS, CONFIG)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's config: how its dictionaries were trained, or which files were imported."""
        return self._stored(self._numbers[0])["run"]

    @property
    def is_imported(self) -> bool:
        """Whether the run was imported from files instead of trained."""
        return self.config.get("files") is not None

    def source(self, layer: int) -> str | None:
        """Returns the file from which the dictionary of `layer` was imported. None if it was trained, or if an older
        version has imported it."""
        return self._stored(layer).get("source")

    def _stored(self, layer: int) -> dict[str, Any]:
        return json.loads((self.folder(layer) / CONFIG).read_text())


@dataclass(frozen=True)
class ExportedModel:
    """What other libraries must know of the language model, without its weights."""

    name: str
    """Name that exported files state."""
    hub_name: str | None
    """Name on the Hugging Face hub, if the model comes from there."""
    anatomy: Anatomy
    changes_mlp_out: bool
    """Whether mlp_added differs from mlp_out: a norm or a factor is applied to the MLP's output."""


def describe_model(results: Path, name: str | None = None) -> ExportedModel:
    """Returns what is known of the language model of the study in the folder `results`.

    By default, its `name` is that on the hub, or else the name of its folder, or else that of the study. Raises
    ValueError if the model is missing.
    """
    folder = Layout(results).model
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: there is no language model; run `snakemake language_model` for this study first"
        )
    record = folder / SOURCE
    origin = json.loads(record.read_text()) if record.is_file() else {}
    hub_name = origin.get("name") if origin.get("source") == "hub" else None
    own = Path(origin["path"]).name if "path" in origin else results.resolve().name
    anatomy = read_anatomy(folder)
    factor = json.loads((folder / "config.json").read_text()).get("residual_multiplier")
    changes = anatomy.norm_mlp_after is not None or (factor is not None and factor != 1)
    return ExportedModel(name or hub_name or own, hub_name, anatomy, changes)


def _layers_of(run: Path) -> list[int]:
    names = [re.fullmatch(r"layer(\d+)", file.parent.name) for file in run.glob(f"layer*/{CONFIG}")]
    return sorted(int(name[1]) for name in names if name)
