"""Imports the transcoders of Dunefsky et al. 2024 (repository transcoder_circuits).

The transcoders are converted to raw coordinates. Each published file was saved by torch and holds the transcoder of one
layer. The file contains the weights, and usually a config object of one of the authors' classes. No code from the file
is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config.dictionaries import Run
from ...core.errors import first_line
from ...language_model.model import LanguageModel
from ..dictionary import Dictionary, save_dictionary
from ..training.paper_loss import transcoder_coordinates
from ..training.parameters import Parameters, with_unit_rows

CONFIG_CLASS = "LanguageModelSAERunnerConfig"
"""Class name of the config objects in published files. The module of the class does not matter."""


class _ConfigAttributes:
    """Replaces the class of the config object while a file is read. An instance holds the config's attributes."""


def import_run(run: Run, layer: int, model: LanguageModel, output: Path) -> None:
    """Write the published transcoder of `layer` into the folder `output`.

    The files are those of a trained run, but without history. Raises ValueError as `import_transcoder` does.
    """
    save_dictionary(import_transcoder(run, layer, model), output, run.model_dump(mode="json"))


def import_transcoder(run: Run, layer: int, model: LanguageModel) -> Dictionary:
    """Returns the published transcoder of `layer`, converted to raw activations.

    Features have the same indices as in the file.

    The published transcoder was trained on outputs centred over d, because TransformerLens centres everything that is
    written to the residual stream. For each token, centring removed the mean w · neurons + mean(b_out), where w is the
    mean of the output matrix over d. This function adds mean(b_out) to b_dec. It leaves out w · neurons, because a
    dictionary cannot express this term and every LayerNorm removes it.

    Raises ValueError if the file cannot be read, or is not of this model, layer and width. The message names the file.
    Also raises ValueError if the model has no LayerNorm before its MLP.
    """
    norm = model.norm(layer, model.anatomy.norm_mlp)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(
            f"published transcoders read a LayerNorm's output; {model.anatomy.architecture} has none before its MLP: "
            "train transcoders instead"
        )
    (d,) = norm.normalized_shape
    weights = read_transcoder(Path(run.file(layer)), layer, d, run.width)
    bias = getattr(model.mlp(layer).get_submodule(model.anatomy.mlp_projection), "bias", None)
    b_out = torch.zeros(d) if bias is None else bias.detach().float()
    return transcoder_coordinates(model, layer).to_dictionary(with_unit_rows(weights), run, layer, b_out)


def read_transcoder(file: Path, layer: int, d: int, width: int) -> Parameters:
    """Returns the weights in `file`, in the authors' coordinates.

    The authors call the returned `b_in` b_dec, and the returned `b_dec` b_dec_out.

    Raises ValueError if the file cannot be read safely, or is not a transcoder of `layer` with `d` dimensions and
    `width` features. The message names the file.
    """
    content = _load(file)
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


def _load(file: Path) -> Any:
    """Returns the content of a file that torch saved. Config objects are returned as `_ConfigAttributes`."""
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if not file.is_file():
        raise ValueError(f"{file}: file not found; download it with `hf download`, or correct `files`")
    try:
        classes = get_unsafe_globals_in_checkpoint(str(file))
        unsafe = sorted(name for name in classes if name.rpartition(".")[2] != CONFIG_CLASS)
        if not unsafe:
            with safe_globals([(_ConfigAttributes, name) for name in classes]):
                return torch.load(file, map_location="cpu", weights_only=True)
    # a damaged or malicious pickle can raise any exception
    except Exception as error:
        raise ValueError(f"{file}: cannot be read safely ({first_line(error)}); download it again") from error
    raise ValueError(
        f"{file}: reading it would run {unsafe[0]}, which weights do not need; download the published file"
    )


def _check_config(file: Path, config: Any, layer: int) -> None:
    """Raise ValueError if `config` describes anything other than a transcoder of `layer`.

    A missing config raises no error.
    """
    if isinstance(config, _ConfigAttributes):
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
        raise ValueError(f"{file}: {name} has non-finite values; download it again")
