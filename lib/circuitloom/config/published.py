"""Recognises published dictionaries (SAEs and transcoders of other projects) by their files, without torch or numpy."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.hub import hub_commit, is_hub_name
from ..core.tensor_headers import NPZ
from .published_cross_layer import CROSS_LAYER_FILES, DESCRIBE_CROSS_LAYER, check_cross_layer
from .published_files import FileReference, FoundFiles, HubFiles, LocalFiles, find_files, parse_uri
from .published_layer import DictionaryFiles, Headers, PublishedLayer, describe

Format = Literal[
    "circuit_tracer", "gemma_scope", "saelens", "sparsify", "dictionary_learning", "transcoder_circuits"
]
SET_CONFIG = "config.yaml"
"""File with the settings of a set of circuit-tracer."""
WEIGHTS = {
    "params.npz": ("gemma_scope", "config.json"),
    "params.safetensors": ("gemma_scope", "config.json"),
    "sae_weights.safetensors": ("saelens", "cfg.json"),
    "sae.safetensors": ("sparsify", "cfg.json"),
    "ae.pt": ("dictionary_learning", "config.json"),
}
"""Maps the name of a file of weights to its format, and to the file of settings next to it."""
_LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")
_EQUAL = ("kind", "site_in", "site_out", "act", "k", "width", "d_in", "d_out", "skip")
"""What all layers of a run have in common."""


@dataclass(frozen=True)
class PublishedSet:
    """Published dictionaries, at most one per layer."""

    source: str
    """Where the files are, in words."""
    layers: Mapping[int, PublishedLayer]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Maps a file to the reason why it is left out, for files that this project cannot represent."""

    @property
    def first(self) -> PublishedLayer:
        """The dictionary of the lowest layer."""
        return self.layers[min(self.layers)]

    def keys(self) -> dict[str, Any]:
        """Returns the keys of a run that the files determine, with their values."""
        first = self.first
        keys: dict[str, Any] = {
            "format": first.format,
            "act": first.act,
            "width": first.width,
            "skip": first.skip,
        }
        if first.k is not None:
            keys["k"] = first.k
        if first.kind is not None:
            keys |= {"kind": first.kind, "site": first.site_out}
        if first.kind in ("transcoder", "clt"):
            keys["reads"] = first.site_in
        return keys

    def check_layers(self, wanted: Iterable[int], layers: int, d: int) -> None:
        """Raise ValueError, with the remedy, if a wanted layer is missing or if the files are of another model.

        `layers` and `d` are the model's number of layers and the width of its residual stream.
        """
        first = self.first
        if {first.d_in, first.d_out} != {d}:
            sizes = " and ".join(str(size) for size in sorted({first.d_in, first.d_out}))
            model = f", made for {first.model_name}" if first.model_name else ""
            raise ValueError(
                f"{self.source}: dictionaries of d={sizes}{model}; the study's model has d={d}: name the files of "
                "this model"
            )
        if first.kind == "clt" and (set(wanted) != set(self.layers) or len(self.layers) > layers):
            raise ValueError(
                f"{self.source}: a cross-layer transcoder of layers 0 to {max(self.layers)}, whose features write to "
                f"all later layers, and the model has {layers}; set activations.layers to {sorted(self.layers)}, or "
                "name the files of this model"
            )
        usable = [layer for layer in sorted(self.layers) if layer < layers]
        missing = sorted(set(wanted) - set(usable))
        if missing:
            reason = f" ({next(iter(self.refused.values()))})" if self.refused else ""
            raise ValueError(
                f"{self.source}: no dictionary of layer {missing[0]}{reason}; there are layers "
                f"{', '.join(map(str, usable)) or 'of other models only'}: set activations.layers to {usable}"
            )


def is_transcoder_circuits(files: str, format: Format | None) -> bool:
    """Whether `files` names pickled transcoders of Dunefsky et al. (2024), one file per layer."""
    return format == "transcoder_circuits" or (
        format is None and files.endswith(".pt") and Path(files).name != "ae.pt"
    )


def is_hub_set(files: str, revision: str | None) -> bool:
    """Whether `files` names a hub repository (OWNER/NAME) and not a folder."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", files) is not None and is_hub_name(files, revision)


def recognise(
    files: str,
    subfolder: str = "",
    revision: str | None = None,
    format: Format | None = None,
    stated: Mapping[str, Any] | None = None,
    key: str = "files",
) -> PublishedSet:
    """Returns the published dictionaries in a folder, a file or a hub repository.

    `files`, `subfolder`, `revision` and `format` are keys of a run. `stated` are other keys of the run. They decide if
    there are several dictionaries of a layer. `key` is the config key of `files`. Raises ValueError, with the remedy,
    if there is no dictionary of a known format.
    """
    is_hub = is_hub_set(files, revision)
    found = find_files(files, subfolder, revision, is_hub, key)
    where = str(found.files)
    units = list(_dictionaries(found, format, key))
    if not units:
        some = ", ".join(found.names[:3]) or "no file"
        raise ValueError(
            f"{key}: {where} has {some}{', ...' if len(found.names) > 3 else ''}; needed is one of {SET_CONFIG} with "
            f"layer_0.safetensors, {', '.join(WEIGHTS)}, or a path that ends in {{layer}}.pt (docs/exchange.md)"
        )
    described, refused = _describe(units)
    if not described:
        raise ValueError(f"{key}: {next(iter(refused.values()))}")
    layers = _one_per_layer(described, stated or {}, key)
    _check_equal(layers, key)
    check_cross_layer(layers, refused, key)
    return PublishedSet(where, layers, refused)


def commit_of(files: str, revision: str | None, key: str) -> str | None:
    """Returns the commit of a hub repository. Returns None for local files."""
    return hub_commit(files, revision or "main", key) if is_hub_set(files, revision) else None


def _dictionaries(
    found: FoundFiles, format: Format | None, key: str
) -> Iterator[tuple[str, DictionaryFiles]]:
    """Yields the format and the files of each dictionary."""
    last_names = {name: name.rpartition("/")[2] for name in found.names}
    sets = [name for name, last in last_names.items() if last == SET_CONFIG]
    if format in (None, "circuit_tracer") and sets:
        # a set lists its files, which may also look like those of other formats
        for name in sets:
            yield from _circuit_tracer_set(found, name, key)
        return
    for name, last in last_names.items():
        folder = name.rpartition("/")[0]
        if last in WEIGHTS and format in (None, WEIGHTS[last][0]):
            config = f"{folder}/{WEIGHTS[last][1]}".lstrip("/")
            yield (
                WEIGHTS[last][0],
                DictionaryFiles(
                    found.reference(name),
                    # a path can name the file of weights itself, and then the names have no settings
                    found.reference(config) if found.has(config) else None,
                    f"{found.place}/{folder}",
                    found.layers.get(name),
                ),
            )
        elif format == "circuit_tracer" and (numbered := _LAYER_FILE.fullmatch(last)):
            yield "circuit_tracer", _layer_file(found.reference(name), int(numbered[1]))
    for name, cross_layer in CROSS_LAYER_FILES.items():
        if format in (None, name):
            yield from ((name, files) for files in cross_layer(found, key))


def _circuit_tracer_set(found: FoundFiles, config: str, key: str) -> Iterator[tuple[str, DictionaryFiles]]:
    """Yields the files of each layer of a set of circuit-tracer: those that its config lists, or layer_N.safetensors
    next to it (of a cross-layer transcoder, W_enc_N.safetensors and W_dec_N.safetensors)."""
    reference = found.reference(config)
    settings = reference.settings()
    kind = settings.get("model_kind", "transcoder_set")
    is_cross_layer = kind == "cross_layer_transcoder"
    if kind != "transcoder_set" and not is_cross_layer:
        raise ValueError(
            f"{key}: {reference} states model_kind: {kind}; transcoder_set and cross_layer_transcoder are supported"
        )
    folder = config.rpartition("/")[0]
    if "transcoders" in settings:
        for layer, path in enumerate(settings["transcoders"]):
            file = _listed(found, folder, str(path), key)
            files = _layer_file(file, layer, reference, settings)
            # circuit-tracer lists files of cross-layer transcoders in Gemma Scope's format only
            format = "gemma_scope" if is_cross_layer else _listed_format(file)
            yield format, replace(files, is_cross_layer=is_cross_layer)
        return
    if is_cross_layer:
        for files in CROSS_LAYER_FILES["circuit_tracer"](found, key, folder):
            shared = _layer_file(files.weights, files.layer, reference, settings)
            yield "circuit_tracer", replace(shared, is_cross_layer=True, decoders=files.decoders)
        return
    for name in found.names:
        inside, _, last = name.rpartition("/")
        if inside == folder and (numbered := _LAYER_FILE.fullmatch(last)):
            yield "circuit_tracer", _layer_file(found.reference(name), int(numbered[1]), reference, settings)


def _listed(found: FoundFiles, folder: str, path: str, key: str) -> FileReference:
    """Returns the file that a set's config lists by a URI of the hub, or by a path relative to the config."""
    if path.startswith("hf://"):
        try:
            return parse_uri(path, key)
        except ValueError as error:
            raise ValueError(f"{key}: {SET_CONFIG}: {error}") from error
    if isinstance(found.files, HubFiles):
        return found.reference(f"{folder}/{path}".lstrip("/"))
    file = found.files.root / folder / path
    if not file.is_file():
        raise ValueError(f"{key}: {file} does not exist, but {SET_CONFIG} lists it; download it too")
    return FileReference(LocalFiles(file.parent), file.name)


def _listed_format(file: FileReference) -> str:
    """Returns the format of a listed file: that of Gemma Scope, or circuit-tracer's own."""
    if file.name.endswith(NPZ) or file.name.rpartition("/")[2] in WEIGHTS:
        return "gemma_scope"
    return "circuit_tracer"


def _layer_file(
    file: FileReference,
    layer: int | None,
    config: FileReference | None = None,
    settings: Mapping[str, Any] | None = None,
) -> DictionaryFiles:
    """Returns the files of one layer of a set of circuit-tracer, whose `settings` are the content of `config`."""
    settings = settings or {}
    hooks = settings.get("feature_input_hook"), settings.get("feature_output_hook")
    return DictionaryFiles(
        file,
        None,
        str(file),
        layer,
        hooks=(hooks[0], hooks[1]) if hooks[0] and hooks[1] else None,
        set_config=config,
        set_settings=settings,
    )


def _describe(
    units: Iterable[tuple[str, DictionaryFiles]],
) -> tuple[list[PublishedLayer], dict[str, str]]:
    """Returns descriptions, and for each file that cannot be represented the reason.

    Of a hub repository, only the header of one file is downloaded; the job that imports the others compares their
    shapes with it.
    """
    described, refused = [], {}
    remote: Headers | None = None
    for format, files in units:
        try:
            headers: Headers = {}
            # torch files have no header
            if format != "dictionary_learning":
                here = files.weights.files.is_here(files.weights.name)
                # layers of a cross-layer transcoder differ in their numbers of outputs
                shared = None if here or files.is_cross_layer else remote
                headers = files.weights.headers() if shared is None else shared
                remote = remote if here else headers
            describer = DESCRIBE_CROSS_LAYER[format] if files.is_cross_layer else None
            described.append(describe(files, format, headers, describer))
        except ValueError as error:
            refused[str(files.weights)] = str(error)
    return described, refused


def _one_per_layer(
    described: Iterable[PublishedLayer], stated: Mapping[str, Any], key: str
) -> dict[int, PublishedLayer]:
    """Returns the dictionary of each layer. Of several, the one that agrees with the stated keys is chosen."""
    by_layer: dict[int, list[PublishedLayer]] = defaultdict(list)
    for each in described:
        by_layer[each.layer].append(each)
    layers = {}
    for layer, several in sorted(by_layer.items()):
        chosen = several
        if len(several) > 1:
            chosen = [each for each in several if _agrees(each, stated)]
        if len(chosen) != 1:
            among = chosen or several
            names = ", ".join(str(each.weights.name) for each in among[:3])
            raise ValueError(
                f"{key}: {len(among)} dictionaries of layer {layer} ({names}{', ...' if len(among) > 3 else ''}); name "
                "one with `subfolder`, which may contain {layer}, or with `kind`, `site`, `width` or `k`"
            )
        layers[layer] = chosen[0]
    return layers


def _agrees(layer: PublishedLayer, stated: Mapping[str, Any]) -> bool:
    """Whether a dictionary has the stated values. Values that the files do not say agree with everything."""
    found = {
        "kind": layer.kind, "site": layer.site_out, "reads": layer.site_in, "act": layer.act, "k": layer.k,
        "width": layer.width, "skip": layer.skip,
    }  # fmt: skip
    return all(found.get(name) in (None, value) for name, value in stated.items())


def _check_equal(layers: Mapping[int, PublishedLayer], key: str) -> None:
    """Raise ValueError if dictionaries differ in what all layers of a run have in common."""
    (first_layer, first), *others = layers.items()
    for layer, each in others:
        for name in _EQUAL:
            mine, other = getattr(first, name), getattr(each, name)
            if mine != other:
                raise ValueError(
                    f"{key}: layer {first_layer} has {name} {mine}, layer {layer} {other}; all layers of a run are "
                    "alike: name one set with `subfolder`, or import layers in runs of their own"
                )


def formats() -> tuple[str, ...]:
    """Returns the names of the formats."""
    return get_args(Format)
