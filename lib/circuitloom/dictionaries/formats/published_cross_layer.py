"""Imports published cross-layer transcoders. `config/published_cross_layer.py` recognises their files.

Layers are read one after another: memory holds the weights of one layer, and the outputs on about 1,000 tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.activations import MLP_INPUTS, MLP_OUTPUTS
from ...config.dictionaries import Run, stated_keys
from ...config.published import Format, PublishedSet, recognise
from ...config.published_layer import PublishedLayer
from ...core.progress import announce, progress
from ...language_model.model import LanguageModel
from ..cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    add_by_layer,
    save_cross_layer_dictionary,
)
from .hook_check import HOOK_IN_BLOCK, FitCheck, HookReading, hook_values, to_unit_scale, unexplained
from .reading import check_tensors, read_tensors

_Input = tuple[str, bool]
"""Hook that the features read, and whether inputs and outputs are scaled."""


class PublishedTranscoder(Mapping[int, CrossLayerDictionary]):
    """The layers of a published cross-layer transcoder. Each is read when it is asked for, and not kept."""

    def __init__(self, found: PublishedSet, site_in: str, site_out: str) -> None:
        """Raises ValueError if `found` is no cross-layer transcoder."""
        if found.first.kind != "clt":
            raise ValueError(
                f"{found.source}: these are dictionaries of one layer each; read each with read_published"
            )
        self.found, self.site_in, self.site_out = found, site_in, site_out

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.found.layers))

    def __len__(self) -> int:
        return len(self.found.layers)

    def __getitem__(self, layer: int) -> CrossLayerDictionary:
        published = self.found.layers[layer]
        tensors: dict[str, Any] = {
            name: value.float().contiguous() for name, value in read_layer(published).items()
        }
        for name, value in tensors.items():
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"{published.weights}: {name} has values beyond float32; name another dictionary"
                )
        assert published.outputs is not None
        outputs = tuple(range(layer, layer + published.outputs))
        return CrossLayerDictionary(
            **tensors,
            act="relu" if published.act == "relu" else "threshold",
            outputs=outputs,
            # the files do not state any
            scales=(1.0,) * len(outputs),
            site_in=self.site_in,
            site_out=self.site_out,
            layer=layer,
        )


def read_layer(layer: PublishedLayer) -> dict[str, Tensor]:
    """Returns the tensors of a layer by the names of the fields of `CrossLayerDictionary`, in the files' number format.

    Raises ValueError if they are damaged.
    """
    return READERS[layer.format](layer)


def _read_circuit_tracer(layer: PublishedLayer) -> dict[str, Tensor]:
    """Thresholds are applied without ReLU, as those of `CrossLayerDictionary` are, so all tensors keep their bits."""
    number, width = layer.layer, layer.width
    assert layer.decoders is not None and layer.outputs is not None
    encoder, decoder = layer.weights.path(), layer.decoders.path()
    tensors, decoders = read_tensors(encoder), read_tensors(decoder)
    shapes = {"W_enc": (width, layer.d_in), "b_enc": (width,), "b_dec": (layer.d_out,)}
    shapes |= {"threshold": (width,)} if layer.act == "jumprelu" else {}
    check_tensors(encoder, tensors, {f"{name}_{number}": shape for name, shape in shapes.items()})
    name = f"W_dec_{number}"
    check_tensors(decoder, decoders, {name: (width, layer.outputs, layer.d_out)})
    return {each: tensors[f"{each}_{number}"] for each in shapes} | {"W_dec": decoders[name]}


def _read_gemma_scope(layer: PublishedLayer) -> dict[str, Tensor]:
    """Thresholds are applied after ReLU. The skip connection is x @ affine, not transposed."""
    number, width, file = layer.layer, layer.width, layer.weights.path()
    assert layer.outputs is not None
    tensors = read_tensors(file)
    shapes: dict[str, tuple[int, ...]] = {
        "w_enc": (layer.d_in, width),
        "b_enc": (width,),
        "w_dec": (width, number + layer.outputs, layer.d_out),
        "b_dec": (layer.d_out,),
        "threshold": (width,),
    }
    shapes |= {"affine_skip_connection": (layer.d_in, layer.d_out)} if layer.skip else {}
    check_tensors(file, tensors, shapes)
    earlier = tensors["w_dec"][:, :number]
    if bool((earlier != 0).any()):
        share = float(
            torch.linalg.vector_norm(earlier.float()) / torch.linalg.vector_norm(tensors["w_dec"].float())
        )
        announce(
            "dictionaries",
            f"{file}: decoders to earlier layers are left out, as circuit-tracer does; their norm is {share:.2g} of "
            "that of all decoders",
        )
    skip = {"W_skip": tensors["affine_skip_connection"].T} if layer.skip else {}
    return {
        "W_enc": tensors["w_enc"].T,
        "b_enc": tensors["b_enc"],
        "W_dec": tensors["w_dec"][:, number:],
        "b_dec": tensors["b_dec"],
        "threshold": tensors["threshold"].clamp(min=0),
        **skip,
    }


READERS: dict[str, Callable[[PublishedLayer], dict[str, Tensor]]] = {
    "circuit_tracer": _read_circuit_tracer,
    "gemma_scope": _read_gemma_scope,
}
"""Maps each format to the function that reads a layer of its cross-layer transcoders."""


def read_published_clt(
    files: Path | str, *, subfolder: str = "", revision: str | None = None, format: Format | None = None
) -> CrossLayerTranscoder:
    """Returns a published cross-layer transcoder, on raw activations.

    `files` is a folder, or a repository of the hub. The format is recognised. Raises ValueError if it cannot be read or
    represented.

    >>> transcoder = read_published_clt("/data/gemma-scope-2-270m-pt", subfolder="clt/width_262k_l0_medium")
    """
    found = recognise(str(files), subfolder, revision, format)
    assert found.first.site_in is not None and found.first.site_out is not None
    return CrossLayerTranscoder(
        PublishedTranscoder(found, found.first.site_in, found.first.site_out).values()
    )


def import_cross_layer_run(
    run: Run, model: LanguageModel, validation: Path, outputs: Mapping[int, Path], commit: str | None = None
) -> None:
    """Write all layers of a published cross-layer transcoder. outputs[layer] is the folder of a layer.

    `commit` is defined as in `import_run`. Raises ValueError if the files cannot be read or represented, or if the
    transcoder does not fit the model at the hooks that the files name.
    """
    if commit is not None:
        run = run.model_copy(update={"revision": commit})
    assert run.files is not None
    found = recognise(run.files, run.subfolder, run.revision, run.format, stated_keys(run))
    transcoder = PublishedTranscoder(found, run.site_in, run.site_out)
    if set(transcoder) != set(outputs):
        raise ValueError(f"{found.source}: has layers {list(transcoder)}; the files have changed: run again")
    announce("dictionaries", CrossLayerFitCheck(transcoder, model, validation, run.largest_fvu).verdict())
    config = run.model_dump(mode="json")
    with progress(f"dictionaries: {run.name}", len(outputs), "layers") as bar:
        for layer, output in outputs.items():
            source = str(found.layers[layer].weights)
            save_cross_layer_dictionary(transcoder[layer], output, list(transcoder), config, source)
            bar.update()


class CrossLayerFitCheck(FitCheck):
    """Readings of a cross-layer transcoder: FVU and L0 are means over layers."""

    def __init__(
        self, transcoder: PublishedTranscoder, model: LanguageModel, validation: Path, largest_fvu: float
    ) -> None:
        """The arguments after `transcoder` are those of `FitCheck`."""
        super().__init__(transcoder.found.first, model, validation, largest_fvu)
        self.transcoder = transcoder
        self._n_tokens = 0

    @property
    def where(self) -> str:
        """Names the first file and the layers."""
        return f"{self.layer.weights}: layers 0 to {max(self.transcoder)} together"

    @property
    def n_tokens(self) -> int:
        """Number of tokens of a reading."""
        return self._n_tokens

    @property
    def own(self) -> HookReading:
        """The reading that the files say."""
        return next(self._read([self._own]))

    def others(self) -> Iterator[HookReading]:
        """Yields the readings of all other inputs and outputs, also scaled."""
        names = [name for name in (*MLP_INPUTS, "resid_pre") if not self._lacks(name)]
        inputs, outputs = ([HOOK_IN_BLOCK[name] for name in each] for each in (names, MLP_OUTPUTS))
        readings = product(inputs, outputs, (False, True))
        yield from self._read([reading for reading in readings if reading != self._own])

    def _lacks(self, site: str) -> bool:
        return site == "resid_mid" and self.model.anatomy.parallel

    @property
    def _own(self) -> tuple[str, str, bool]:
        return HOOK_IN_BLOCK[self.transcoder.site_in], HOOK_IN_BLOCK[self.transcoder.site_out], False

    @torch.inference_mode()
    def _read(self, readings: list[tuple[str, str, bool]]) -> Iterator[HookReading]:
        """Yields a result for each (input, output, scaled)."""
        written: dict[_Input, dict[int, Tensor]] = {}
        l0: dict[_Input, float] = {}
        fvu = dict.fromkeys(readings, 0.0)
        n = len(self.transcoder)
        for layer, dictionary in self.transcoder.items():
            values = hook_values(self.model, layer, self.validation)
            for own in sorted({(read, scaled) for read, _, scaled in readings}):
                x = values[own[0]]
                self._n_tokens = len(x)
                x = to_unit_scale(x) * x if own[1] else x
                z = dictionary.encode(x)
                l0[own] = l0.get(own, 0.0) + float((z > 0).sum(1).float().mean()) / n
                add_by_layer(written.setdefault(own, {}), dictionary.write(z))
                y_hat = dictionary.add_bias(written[own].pop(layer), x)
                for reading in readings:
                    if (reading[0], reading[2]) == own:
                        y = values[reading[1]]
                        scale = to_unit_scale(y) if reading[2] else 1.0
                        fvu[reading] += unexplained(y, y_hat / scale) / n
        for read, output, scaled in readings:
            yield HookReading(read, output, scaled, False, fvu[read, output, scaled], l0[read, scaled])
