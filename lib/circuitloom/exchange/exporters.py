"""The formats in which dictionaries can be exported, by the name of the library that owns the format."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..dictionaries.cross_layer import CrossLayerDictionary, LayerDictionary
from ..dictionaries.dictionary import Dictionary, save_tensors
from ..dictionaries.formats import circuit_tracer, circuit_tracer_clt, saelens, sparsify
from .stored_run import ExportedModel

D = TypeVar("D", bound=LayerDictionary)


class Exporter(ABC, Generic[D]):
    """Writes the dictionaries of a run in one format, layer by layer."""

    library: str
    """Name of the library on the hub, which owns the format."""
    set_files: tuple[str, ...] = ()
    """Names of the files about all layers, which are written last."""

    @abstractmethod
    def check(self, run: Mapping[int, D], model: ExportedModel) -> None:
        """Raise ValueError, with the remedy, if the format cannot represent the dictionaries."""

    @abstractmethod
    def layer_files(self, dictionary: D, model: ExportedModel) -> list[str]:
        """Returns the paths of the files of one layer, relative to the exported folder."""

    @abstractmethod
    def write_layer(self, dictionary: D, folder: Path, model: ExportedModel) -> None:
        """Write the files of one layer, each atomically."""

    def write_set(self, first: D, folder: Path, model: ExportedModel) -> None:
        """Write `set_files`, given the dictionary of the first layer."""
        assert not self.set_files

    def notice(self, first: D) -> str | None:
        """Returns what a user must know before reading the files, given the dictionary of the first layer."""
        return None

    @abstractmethod
    def usage(self, first: D, layers: int, model: ExportedModel) -> str:
        """Returns Python code that loads what was exported, with the names of `FOLDER`. `layers` is their number."""


FOLDER = """\
# the folder of this card; of a hub repository: huggingface_hub.snapshot_download("OWNER/NAME")
folder = "."
"""
"""Start of all code on cards."""


def _replacement_model(model: ExportedModel, transcoders: str) -> str:
    """Returns code that makes circuit-tracer's replacement model. `transcoders` is the variable that has them."""
    return (
        f"{'' if model.hub_name else '# a folder with the language model, or its name on the hub' + chr(10)}"
        f"language_model = {json.dumps(model.name)}\n"
        "model = ReplacementModel.from_pretrained_and_transcoders(\n"
        f'    language_model, {transcoders}, dtype=torch.float32, backend="nnsight"\n'
        ")"
    )


class CircuitTracerExporter(Exporter[Dictionary]):
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
            f"{_replacement_model(model, 'transcoders')}"
        )


class CircuitTracerCltExporter(Exporter[CrossLayerDictionary]):
    """A cross-layer transcoder of circuit-tracer: `W_enc_L.safetensors`, `W_dec_L.safetensors` and config.yaml."""

    library = "circuit-tracer"
    set_files = ("config.yaml",)

    def check(self, run: Mapping[int, CrossLayerDictionary], model: ExportedModel) -> None:
        """Raise ValueError if circuit-tracer cannot load the transcoder."""
        circuit_tracer_clt.check_clt(run, model.anatomy.layers)

    def layer_files(self, dictionary: CrossLayerDictionary, model: ExportedModel) -> list[str]:
        """Returns the names of the layer's files."""
        return circuit_tracer_clt.clt_files(dictionary.layer)

    def write_layer(self, dictionary: CrossLayerDictionary, folder: Path, model: ExportedModel) -> None:
        """Write the layer's files."""
        circuit_tracer_clt.write_clt_layer(dictionary, folder, model.anatomy.layers)

    def write_set(self, first: CrossLayerDictionary, folder: Path, model: ExportedModel) -> None:
        """Write config.yaml."""
        circuit_tracer.write_set_config(folder, first, model.name)

    def usage(self, first: CrossLayerDictionary, layers: int, model: ExportedModel) -> str:
        """Returns code that loads the transcoder into a replacement model."""
        return (
            "import torch, yaml\n"
            "from circuit_tracer import ReplacementModel\n"
            "from circuit_tracer.transcoder.cross_layer_transcoder import load_clt\n\n"
            f"{FOLDER}"
            'config = yaml.safe_load(open(f"{folder}/config.yaml"))\n'
            "transcoder = load_clt(\n"
            '    folder, config["feature_input_hook"], config["feature_output_hook"], dtype=torch.float32\n'
            ")\n"
            f"{_replacement_model(model, 'transcoder')}"
        )


class SaelensExporter(Exporter[Dictionary]):
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


class SparsifyExporter(Exporter[Dictionary]):
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


EXPORTERS: dict[str, Exporter[Dictionary]] = {
    "circuit-tracer": CircuitTracerExporter(),
    "saelens": SaelensExporter(),
    "sparsify": SparsifyExporter(),
}
"""Maps the name of each format of dictionaries in `config.export_formats` to its exporter."""
CLT_EXPORTERS: dict[str, Exporter[CrossLayerDictionary]] = {"circuit-tracer": CircuitTracerCltExporter()}
"""Maps the name of each format that has cross-layer transcoders to its exporter."""


def find_exporter(format_name: str, dictionary: LayerDictionary) -> Exporter[Any]:
    """Returns the exporter of a run with this dictionary. Raises ValueError if the format has no cross-layer
    transcoders, and `dictionary` is a layer of one."""
    if isinstance(dictionary, Dictionary):
        return EXPORTERS[format_name]
    if format_name not in CLT_EXPORTERS:
        raise ValueError(
            f"{format_name} has no cross-layer transcoders, and this run is one; choose from "
            f"{', '.join(CLT_EXPORTERS)}, or name another run"
        )
    return CLT_EXPORTERS[format_name]
