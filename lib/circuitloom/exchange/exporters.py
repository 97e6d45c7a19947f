"""The formats in which dictionaries can be exported, by the name of the library that owns the format."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from ..dictionaries.dictionary import Dictionary, save_tensors
from ..dictionaries.formats import circuit_tracer, saelens, sparsify
from .stored_run import ExportedModel


class Exporter(ABC):
    """Writes the dictionaries of a run in one format, layer by layer."""

    library: str
    """Name of the library on the hub, which owns the format."""
    set_files: tuple[str, ...] = ()
    """Names of the files about all layers, which are written last."""

    @abstractmethod
    def check(self, run: Mapping[int, Dictionary], model: ExportedModel) -> None:
        """Raise ValueError, with the remedy, if the format cannot represent the dictionaries."""

    @abstractmethod
    def layer_files(self, dictionary: Dictionary, model: ExportedModel) -> list[str]:
        """Returns the paths of the files of one layer, relative to the exported folder."""

    @abstractmethod
    def write_layer(self, dictionary: Dictionary, folder: Path, model: ExportedModel) -> None:
        """Write the files of one layer, each atomically."""

    def write_set(self, first: Dictionary, folder: Path, model: ExportedModel) -> None:
        """Write `set_files`, given the dictionary of the first layer."""
        assert not self.set_files

    def notice(self, first: Dictionary) -> str | None:
        """Returns what a user must know before reading the files, given the dictionary of the first layer."""
        return None

    @abstractmethod
    def usage(self, first: Dictionary, layers: int, model: ExportedModel) -> str:
        """Returns Python code that loads what was exported, with the names of `FOLDER`. `layers` is their number."""


FOLDER = """\
# the folder of this card; of a hub repository: huggingface_hub.snapshot_download("OWNER/NAME")
folder = "."
"""
"""Start of all code on cards."""


class CircuitTracerExporter(Exporter):
    """A transcoder set of circuit-tracer: `layer_L.safetensors` and config.yaml."""

    library = "circuit-tracer"
    set_files = ("config.yaml",)

    def check(self, run: Mapping[int, Dictionary], model: ExportedModel) -> None:
        """Raise ValueError if circuit-tracer cannot load the set."""
        circuit_tracer.check_set(run)

    def layer_files(self, dictionary: Dictionary, model: ExportedModel) -> list[str]:
        """Returns the name of the layer's file."""
        return [circuit_tracer.layer_file(dictionary.layer)]

    def write_layer(self, dictionary: Dictionary, folder: Path, model: ExportedModel) -> None:
        """Write the layer's file."""
        file = folder / circuit_tracer.layer_file(dictionary.layer)
        save_tensors(file, circuit_tracer.layer_tensors(dictionary))

    def write_set(self, first: Dictionary, folder: Path, model: ExportedModel) -> None:
        """Write config.yaml."""
        circuit_tracer.write_set_config(folder, first, model.name)

    def notice(self, first: Dictionary) -> str | None:
        """Says which versions read topk."""
        if first.act != "topk":
            return None
        return (
            "circuit-tracer 0.5.0 and older ignore `activation: topk` in config.yaml and apply a ReLU; read this set "
            "with a version that has pull request 94, which keeps negative activations among the k largest (here they "
            "are 0)"
        )

    def usage(self, first: Dictionary, layers: int, model: ExportedModel) -> str:
        """Returns code that loads the set into a replacement model."""
        return (
            "import torch, yaml\n"
            "from circuit_tracer import ReplacementModel\n"
            "from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set\n\n"
            f"{FOLDER}"
            'config = yaml.safe_load(open(f"{folder}/config.yaml"))\n'
            f'files = {{layer: f"{{folder}}/layer_{{layer}}.safetensors" for layer in range({layers})}}\n'
            "transcoders = load_transcoder_set(\n"
            '    files, folder, config["feature_input_hook"], config["feature_output_hook"], dtype=torch.float32\n'
            ")\n"
            f"{'' if model.hub_name else '# a folder with the language model, or its name on the hub' + chr(10)}"
            f"language_model = {json.dumps(model.name)}\n"
            "model = ReplacementModel.from_pretrained_and_transcoders(\n"
            '    language_model, transcoders, dtype=torch.float32, backend="nnsight"\n'
            ")"
        )


class SaelensExporter(Exporter):
    """SAEs or transcoders of SAELens 6: a folder `layer_L` with cfg.json and sae_weights.safetensors for each layer."""

    library = "saelens"

    def check(self, run: Mapping[int, Dictionary], model: ExportedModel) -> None:
        """Raise ValueError if no architecture of SAELens computes the same function."""
        for layer in run:
            saelens.find_architecture(run[layer])

    def layer_files(self, dictionary: Dictionary, model: ExportedModel) -> list[str]:
        """Returns the paths of weights and config."""
        return [f"layer_{dictionary.layer}/{name}" for name in (saelens.WEIGHTS_FILE, saelens.CONFIG_FILE)]

    def write_layer(self, dictionary: Dictionary, folder: Path, model: ExportedModel) -> None:
        """Write weights and config."""
        saelens.export_saelens(dictionary, folder / f"layer_{dictionary.layer}", model.name, model=model)

    def usage(self, first: Dictionary, layers: int, model: ExportedModel) -> str:
        """Returns code that loads one layer."""
        return (
            f'from sae_lens import SAE\n\n{FOLDER}sae = SAE.load_from_disk(f"{{folder}}/layer_{first.layer}")'
        )


class SparsifyExporter(Exporter):
    """Sparse coders of sparsify: for each layer a folder, named by its module, with cfg.json and sae.safetensors."""

    library = "sparsify"

    def check(self, run: Mapping[int, Dictionary], model: ExportedModel) -> None:
        """Raise ValueError if sparsify has no coder or no name for a dictionary."""
        for layer in run:
            dictionary = run[layer]
            sparsify.check_coder(dictionary)
            self._folder(dictionary, model)

    def layer_files(self, dictionary: Dictionary, model: ExportedModel) -> list[str]:
        """Returns the paths of weights and config."""
        folder = self._folder(dictionary, model)
        return [f"{folder}/{name}" for name in (sparsify.WEIGHTS_FILE, sparsify.CONFIG_FILE)]

    def write_layer(self, dictionary: Dictionary, folder: Path, model: ExportedModel) -> None:
        """Write weights and config."""
        sparsify.export_sparsify(dictionary, folder / self._folder(dictionary, model))

    def usage(self, first: Dictionary, layers: int, model: ExportedModel) -> str:
        """Returns code that loads one layer."""
        return (
            f"from sparsify import SparseCoder\n\n{FOLDER}"
            f'coder = SparseCoder.load_from_disk(f"{{folder}}/{self._folder(first, model)}")'
        )

    def _folder(self, dictionary: Dictionary, model: ExportedModel) -> str:
        return sparsify.hookpoint(dictionary, model.anatomy, model.changes_mlp_out)


EXPORTERS: dict[str, Exporter] = {
    "circuit-tracer": CircuitTracerExporter(),
    "saelens": SaelensExporter(),
    "sparsify": SparsifyExporter(),
}
"""Maps the name of each format of dictionaries in `config.export_formats` to its exporter."""
