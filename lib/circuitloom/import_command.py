"""`circuitloom import`: says what published dictionaries are, and how a study imports them."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from .config.published import PublishedSet, formats, is_hub_set, is_transcoder_circuits, recognise
from .config.published_layer import PublishedLayer


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "import", help="say what published dictionaries are, and print the config that imports them"
    )
    parser.add_argument(
        "files", metavar="PATH_OR_REPOSITORY", help="a folder, a file, or OWNER/NAME on the hub"
    )
    parser.add_argument("--subfolder", default="", help="folder in it; may contain {layer}")
    parser.add_argument("--revision", help="branch, tag or commit on the hub (main)")
    parser.add_argument("--format", choices=formats(), help="if it cannot be recognised")
    parser.add_argument(
        "--width", type=int, help="choose among dictionaries of a layer by their number of features"
    )
    parser.add_argument(
        "--site", help="choose among dictionaries of a layer by the site that they reconstruct"
    )
    parser.set_defaults(run_command=_import)


def _import(arguments: argparse.Namespace) -> None:
    """Print the description of the files, one fact per line."""
    files, chosen = arguments.files, {"width": arguments.width, "site": arguments.site}
    if is_transcoder_circuits(files, arguments.format):
        raise ValueError(
            f"{files}: pickled transcoders of Dunefsky et al. (2024) do not say what they are; see "
            "config/studies/gpt2-published.yaml for the config that imports them"
        )
    stated = {key: value for key, value in chosen.items() if value is not None}
    found = recognise(files, arguments.subfolder, arguments.revision, arguments.format, stated, "files")
    for line in describe_set(found):
        print(line)
    print()
    for line in _config_lines(arguments, found):
        print(line)


def describe_set(found: PublishedSet) -> Iterator[str]:
    """Yields lines about published dictionaries: what they are, and which files are left out."""
    first = found.first
    kind = first.kind or "dictionary"
    yield f"{found.source}"
    yield f"format        {first.format}, architecture {first.architecture}"
    names = {"clt": "clt (cross-layer transcoder)"}
    yield f"kind          {names.get(kind, kind)}{' with skip connection' if first.skip else ''}"
    yield f"reads         {_site(first.hook_in, first.site_in, first.bare_norm)}"
    yield f"reconstructs  {_site(first.hook_out, first.site_out, first.bare_norm and kind == 'sae')}"
    yield f"features      {first.width:,} per layer, d={first.d_in}"
    yield f"activation    {first.act}{_sparsity(found)}"
    if first.model_name:
        yield f"model         {first.model_name}"
    yield from _thresholds(first)
    yield f"layers        {', '.join(map(str, sorted(found.layers)))}"
    sizes = [file.stat().st_size for layer in found.layers.values() for file in layer.local_files()]
    yield f"size          {sum(sizes) / 1e6:,.1f} MB" if sizes else "size          on the hub, not downloaded"
    for file, reason in found.refused.items():
        yield f"left out      {reason if reason.startswith(file) else f'{file}: {reason}'}"


def _site(hook: str | None, site: str | None, bare: bool) -> str:
    """Returns a site in words."""
    if site is None:
        return "not stated by the files; set `kind` and `site`"
    words = f"{site} without the norm's gain" if bare else site
    return f"{words} ({hook})"


def _sparsity(found: PublishedSet) -> str:
    """Returns what the files say about the number of active features."""
    if found.first.k is not None:
        return f", k={found.first.k}"
    stated = [layer.l0 for layer in found.layers.values() if layer.l0 is not None]
    return f", L0 {min(stated):g} to {max(stated):g} per token as stated" if stated else ""


def _thresholds(layer: PublishedLayer) -> Iterator[str]:
    """Yields a line about the thresholds of one layer, if it has some and its file is here."""
    if layer.act not in ("jumprelu", "batchtopk") or layer.weights.local is None:
        return
    # loads torch, which recognition does not need
    if layer.kind == "clt":
        from .dictionaries.formats.published_cross_layer import read_layer

        threshold = read_layer(layer)["threshold"]
    else:
        from .dictionaries.formats.published import READERS

        threshold = READERS[layer.format](layer.weights.path(), layer).threshold
    assert threshold is not None
    low, high, middle = (float(value) for value in (threshold.min(), threshold.max(), threshold.median()))
    yield f"thresholds    {low:.3g} to {high:.3g}, median {middle:.3g} (layer {layer.layer})"


def _config_lines(arguments: argparse.Namespace, found: PublishedSet) -> Iterator[str]:
    """Yields the lines of a study's config that import the files."""
    files = arguments.files if is_hub_set(arguments.files, arguments.revision) else _absolute(arguments.files)
    yield "activations:"
    yield f"  layers: {sorted(found.layers)}"
    yield "dictionaries:"
    yield "  published:"
    yield "    name: published"
    yield f"    files: {files}"
    for key in ("subfolder", "revision", "format"):
        if value := getattr(arguments, key):
            yield f"    {key}: {value}"
    for key, value in _choices(arguments, found.first).items():
        yield f"    {key}: {value}"


def _absolute(files: str) -> str:
    return str(Path(files).expanduser().absolute())


def _choices(arguments: argparse.Namespace, first: PublishedLayer) -> dict[str, str | int]:
    """Returns the keys that chose among several dictionaries, and those that the user has to fill in."""
    keys: dict[str, str | int] = {}
    if arguments.width is not None:
        keys["width"] = arguments.width
    if arguments.site is not None:
        keys["site"] = arguments.site
    if first.kind is None:
        keys |= {"kind": "sae", "site": "resid_pre  # the files do not say it"}
    return keys
