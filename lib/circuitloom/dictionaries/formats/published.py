"""The transcoders that Dunefsky et al. 2024 published, brought from their files into raw coordinates.

A file is what torch saved of one layer: the weights, and most often a config object of a class that is not here. It is
read without running anything that is in it.
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
"""Class, in whichever module, of the config objects in published files."""


class _Config:
    """Stands in for the config's class: it holds attributes."""


def import_run(run: Run, layer: int, model: LanguageModel, output: Path) -> None:
    """Write what the file of `run` holds for `layer` into the folder `output`, as training would have left it.

    There is no history, for there was no training. Raises ValueError as `import_transcoder` does.
    """
    save_dictionary(import_transcoder(run, layer, model), output, run.model_dump(mode="json"))


def import_transcoder(run: Run, layer: int, model: LanguageModel) -> Dictionary:
    """The published transcoder of `layer` on raw activations, features numbered as in its file.

    Its output is centred over d: TransformerLens takes the mean over d off all that is written to the residual stream,
    since every LayerNorm does so again. What was taken off an MLP's output is one number a token, w · neurons +
    mean(b_out), with w the mean of the output matrix over d. Its first part is no function that a dictionary has
    room for, nor would any reader notice; the constant part is known exactly and joins b_dec. Nothing is fitted.

    Raises ValueError, with the file's name, where it cannot be read or is not of this model, layer and width.
    """
    norm = model.norm(layer, model.anatomy.norm_mlp)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(
            f"published transcoders read what a LayerNorm makes; {model.anatomy.architecture} has none before its "
            "MLP: train transcoders instead"
        )
    (d,) = norm.normalized_shape
    published = read_published(Path(run.file(layer)), layer, d, run.width)
    bias = getattr(model.mlp(layer).get_submodule(model.anatomy.mlp_projection), "bias", None)
    b_out = torch.zeros(d) if bias is None else bias.detach().float()
    return transcoder_coordinates(model, layer).to_dictionary(with_unit_rows(published), run, layer, b_out)


def read_published(file: Path, layer: int, d: int, width: int) -> Parameters:
    """The weights in `file`, in the authors' coordinates; `b_in` is what they call b_dec, b_dec their b_dec_out.

    Raises ValueError, with the file's name, where it cannot be read safely, or is not a transcoder of `layer` between
    sites of width `d` with `width` features.
    """
    content = _load(file)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"{file}: holds no weights by name; get it from where it was published")
    _check_config(file, content.get("cfg"), layer)
    shapes = {"W_enc": (d, width), "b_enc": (width,), "W_dec": (width, d), "b_dec": (d,), "b_dec_out": (d,)}
    for name, shape in shapes.items():
        _check_tensor(file, name, weights.get(name), shape)
    held = {name: weights[name].detach().float() for name in shapes}
    return Parameters(
        W_enc=held["W_enc"].T.contiguous(),
        b_enc=held["b_enc"],
        W_dec=held["W_dec"],
        b_dec=held["b_dec_out"],
        b_in=held["b_dec"],
    )


def _load(file: Path) -> Any:
    """What torch saved in `file`; of what is no plain value or tensor only config objects, without their class."""
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; download it with `hf download`, or correct `files`")
    try:
        named = get_unsafe_globals_in_checkpoint(str(file))
        strange = sorted(name for name in named if name.rpartition(".")[2] != CONFIG_CLASS)
        if not strange:
            with safe_globals([(_Config, name) for name in named]):
                return torch.load(file, map_location="cpu", weights_only=True)
    # a damaged or hostile pickle fails in whichever way it is made to
    except Exception as error:
        raise ValueError(
            f"{file}: not a file of weights that can be read safely ({first_line(error)}); download it again"
        ) from error
    raise ValueError(
        f"{file}: reading it would run {strange[0]}, which weights have no use for; get it from where it was published"
    )


def _check_config(file: Path, config: Any, layer: int) -> None:
    """ValueError where the file's own config, if it has one, is of something else."""
    held = config if isinstance(config, Mapping) else vars(config) if isinstance(config, _Config) else {}
    expected = {
        "is_transcoder": True,
        "hook_point": f"blocks.{layer}.ln2.hook_normalized",
        "out_hook_point": f"blocks.{layer}.hook_mlp_out",
    }
    for key, value in expected.items():
        if held.get(key, value) != value:
            raise ValueError(f"{file}: its {key} is {held[key]}, not {value}; name the file of layer {layer}")


def _check_tensor(file: Path, name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{file}: has no {name}, as transcoders have; name a file of their weights")
    if value.shape != shape:
        raise ValueError(
            f"{file}: {name} is {list(value.shape)}, not {list(shape)} as the model's width and the run's ask; name "
            "the files of this model, or set the run's width"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"{file}: {name} has values that are not finite; download it again")
