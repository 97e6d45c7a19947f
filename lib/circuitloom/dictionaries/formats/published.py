"""Imports published dictionaries of other projects. `config/published.py` recognises their files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.dictionaries import Run, stated_keys
from ...config.published import Format, is_transcoder_circuits, recognise
from ...config.published_layer import PublishedLayer
from ...core.progress import announce
from ...language_model.model import LanguageModel
from ...language_model.residual import Norm
from ..dictionary import Dictionary, save_dictionary
from . import transcoder_circuits
from .folding import PublishedWeights, norm_before_mlp
from .hook_check import HookCheck
from .read_circuit_tracer import read_circuit_tracer
from .read_dictionary_learning import read_dictionary_learning
from .read_gemma_scope import read_gemma_scope
from .read_saelens import read_saelens
from .read_sparsify import read_sparsify

READERS: dict[str, Callable[[Path, PublishedLayer], PublishedWeights]] = {
    "circuit_tracer": read_circuit_tracer,
    "gemma_scope": read_gemma_scope,
    "saelens": read_saelens,
    "sparsify": read_sparsify,
    "dictionary_learning": read_dictionary_learning,
}
"""Maps each format to the function that reads its weights."""
ACTS = {"relu": "relu", "topk": "topk", "batchtopk": "threshold", "jumprelu": "threshold"}
"""Maps the activation function of a run to that of its dictionaries."""


@dataclass(frozen=True)
class ImportJob:
    """What the imports of a sweep at one layer share."""

    layer: int
    model: LanguageModel
    validation: Path | None
    """Held-out tokens of the study. Not needed for transcoders of Dunefsky et al. (2024)."""


def import_run(run: Run, job: ImportJob, output: Path, commit: str | None = None) -> None:
    """Write the published dictionary of one layer into the folder `output`.

    `commit` is that of `run.revision`, if `run.files` is a repository of the hub. The files of this commit are read,
    and the saved config states it as the revision, because a branch moves.

    Raises ValueError if the files cannot be read or represented, or if the dictionary does not fit the model at the
    hooks that the files name (`hook_check`).
    """
    if commit is not None:
        run = run.model_copy(update={"revision": commit})
    assert run.files is not None
    if is_transcoder_circuits(run.files, run.format):
        transcoder_circuits.import_run(run, job.layer, job.model, output)
        return
    found = recognise(run.files, run.subfolder, run.revision, run.format, stated_keys(run))
    if job.layer not in found.layers:
        raise ValueError(
            f"{found.source}: no dictionary of layer {job.layer}; the files have changed: run again"
        )
    layer = found.layers[job.layer]
    _check_attention(layer, job.model)
    norm = norm_before_mlp(job.model, job.layer) if layer.bare_norm else None
    dictionary = to_dictionary(layer, norm, run.site_in, run.site_out)
    assert job.validation is not None
    check = HookCheck(dictionary, layer, job.model, job.validation, run.largest_fvu)
    announce("dictionaries", check.verdict())
    save_dictionary(dictionary, output, run.model_dump(mode="json"), str(layer.weights))


def read_published(
    files: Path | str,
    layer: int,
    model: LanguageModel | None = None,
    *,
    subfolder: str = "",
    revision: str | None = None,
    format: Format | None = None,
) -> Dictionary:
    """Returns the published dictionary of one layer, on raw activations.

    `files` is a folder, a file, or a repository of the hub. The format is recognised. `model` is only needed for
    dictionaries that read the norm's output without its gain; those of attention's output are checked with it. Raises
    ValueError if the dictionary cannot be read or represented.

    >>> transcoder = read_published("/data/gemma-scope-2-270m-pt", 5)
    """
    found = recognise(str(files), subfolder, revision, format)
    if layer not in found.layers:
        raise ValueError(
            f"{found.source}: no dictionary of layer {layer}; there are layers {', '.join(map(str, found.layers))}"
        )
    chosen = found.layers[layer]
    if chosen.kind == "clt":
        raise ValueError(
            f"{found.source}: is a cross-layer transcoder; read all its layers with read_published_clt"
        )
    if chosen.site_in is None or chosen.site_out is None:
        raise ValueError(
            f"{found.source}: its files do not say which site the dictionary reads; import it in a study with `site`"
        )
    if chosen.bare_norm and model is None:
        raise ValueError(
            f"{found.source}: the dictionary reads {chosen.hook_in}, the norm's output without its gain; name the model"
        )
    if model is not None:
        _check_attention(chosen, model)
    norm = norm_before_mlp(model, layer) if chosen.bare_norm and model is not None else None
    return to_dictionary(chosen, norm, chosen.site_in, chosen.site_out)


def _check_attention(layer: PublishedLayer, model: LanguageModel) -> None:
    """Raise ValueError if a dictionary of the attention module's output is no dictionary of what attention adds."""
    if layer.attention_output and model.changes_attention_out:
        raise ValueError(
            f"{layer.weights}: its hook is {layer.hook_out}, and {model.anatomy.architecture} changes this output "
            "(a norm, or a factor) before it is added to the residual stream; there is no site for it: name "
            "dictionaries of hook_attn_out"
        )


def to_dictionary(layer: PublishedLayer, norm: Norm | None, site_in: str, site_out: str) -> Dictionary:
    """Returns a published dictionary as a dictionary of `site_in` and `site_out`, in float32.

    `norm` is the norm before the MLP if the published dictionary reads its output without gain, else None.
    """
    file = layer.weights.path()
    weights = READERS[layer.format](file, layer)
    if norm is not None:
        try:
            weights.read_after_gain(norm)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; name dictionaries of another hook") from error
        if layer.kind == "sae":
            weights.write_after_gain(norm)
    tensors: dict[str, Any] = weights.rounded()
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{file}: {name} has values beyond float32; name another dictionary")
    k = layer.k if layer.act == "topk" else None
    return Dictionary(
        **tensors, act=ACTS[layer.act], k=k, site_in=site_in, site_out=site_out, layer=layer.layer
    )
