"""Imports the transcoders of Dunefsky et al. 2024 (repository transcoder_circuits).

A published file was saved by torch and contains the transcoder of one layer. The file has weights, and usually a config
object. The authors defined the class of this object. No code from the file is run. Weights are converted to raw
activations.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config.dictionaries import Run
from ...core.torch_files import InertObject, load_torch_file
from ...language_model.model import LanguageModel
from ..dictionary import Dictionary, save_dictionary
from ..training.paper_loss import transcoder_coordinates
from ..training.parameters import Parameters, with_unit_rows

CONFIG_CLASS = "LanguageModelSAERunnerConfig"
"""Class name of config objects in published files. The class may be in any module."""
_REMEDY = "download it with `hf download`, or correct `files`"


def import_run(run: Run, layer: int, model: LanguageModel, output: Path) -> None:
    """Write the published transcoder of `layer` into the folder `output`. Raises the errors of `import_transcoder`."""
    save_dictionary(
        import_transcoder(run, layer, model), output, run.model_dump(mode="json"), run.file(layer)
    )


def import_transcoder(run: Run, layer: int, model: LanguageModel) -> Dictionary:
    """Returns the published transcoder of `layer`, converted to raw activations. Feature indices do not change.

    The published transcoder reconstructs centred outputs, because TransformerLens centres MLP outputs over d. Centring
    subtracts mean(b_out) + w · neurons from each output. Here w is the mean of the output matrix over d. This function
    adds mean(b_out) to b_dec. A dictionary cannot express w · neurons. This term is omitted, because every LayerNorm
    removes it.

    Raises ValueError if the file cannot be read, or does not match the model, the layer and the width. Also raises
    ValueError if the model has no LayerNorm before its MLP, or applies a norm or a factor to its output.
    """
    if run.reads != "mlp_in":
        raise ValueError(f"published transcoders read the MLP's input, not {run.reads}; remove `reads`")
    norm = model.norm(layer, model.anatomy.norm_mlp)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(
            f"published transcoders read a LayerNorm's output; {model.anatomy.architecture} has none before its MLP: "
            "train transcoders instead"
        )
    (d,) = norm.normalized_shape
    if model.changes_mlp_out:
        raise ValueError(
            f"published transcoders add their output to the residual stream; {model.anatomy.architecture} changes its "
            "MLPs' output first: train transcoders instead"
        )
    weights = read_transcoder(Path(run.file(layer)), layer, d, run.width)
    bias = getattr(model.mlp(layer).get_submodule(model.anatomy.mlp_projection), "bias", None)
    b_out = torch.zeros(d) if bias is None else bias.detach().float()
    return transcoder_coordinates(model, layer).to_dictionary(with_unit_rows(weights), run, layer, b_out)


def read_transcoder(file: Path, layer: int, d: int, width: int) -> Parameters:
    """Returns the weights in `file`, in the authors' coordinates.

    The returned `b_in` is the file's b_dec. The returned `b_dec` is the file's b_dec_out. Raises ValueError if the file
    cannot be read safely. Also raises ValueError if the file is not a transcoder of `layer` with shape (`d`, `width`).
    """
    content = load_torch_file(file, _REMEDY, lambda name: name.rpartition(".")[2] == CONFIG_CLASS)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"{file}: contains no named weights; download the published file")
    _check_config(file, content.get("cfg"), layer)
    shapes = {"W_enc": (d, width), "b_enc": (width,), "W_dec": (width, d), "b_dec": (d,), "b_dec_out": (d,)}
    for name, shape in shapes.items():
        _check_tensor(file, name, weights.get(name), shape)
    tensors = {name: weights[name].detach().float() for name in shapes}
    return Parameters(
        W_enc=tensors["W_enc"].T.contiguous(),
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec_out"],
        b_in=tensors["b_dec"],
    )


def _check_config(file: Path, config: Any, layer: int) -> None:
    """Raise ValueError if `config` does not describe a transcoder of `layer`. A missing config is accepted."""
    if isinstance(config, InertObject):
        if config.given:
            raise ValueError(f"{file}: cannot be read safely (its cfg is the result of a call); {_REMEDY}")
        config = vars(config)
    attributes = config if isinstance(config, Mapping) else {}
    expected = {
        "is_transcoder": True,
        "hook_point": f"blocks.{layer}.ln2.hook_normalized",
        "out_hook_point": f"blocks.{layer}.hook_mlp_out",
    }
    for key, value in expected.items():
        if attributes.get(key, value) != value:
            raise ValueError(
                f"{file}: its {key} is {attributes[key]}, not {value}; name the file of layer {layer}"
            )


def _check_tensor(file: Path, name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{file}: has no {name}; name a file of transcoder weights")
    if value.shape != shape:
        raise ValueError(
            f"{file}: {name} is {list(value.shape)}, not {list(shape)} as the model and the run need; name the files "
            "of this model, or set the run's width"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"{file}: {name} has non-finite values; copy or download it again")
