"""`circuitloom import`: says what published dictionaries are, and how a study imports them."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from .config.published import PublishedSet, formats, is_hub_set, is_transcoder_circuits, recognise
from .config.published_layer import PublishedLayer
from .core.hub import is_hub_name


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
    study = parser.add_argument_group("write a study that scores and tabulates the dictionaries (all three)")
    study.add_argument("--study", type=Path, metavar="FILE", help="file to write, NAME.yaml")
    study.add_argument("--model", help="the language model: its folder, or OWNER/NAME on the hub")
    study.add_argument(
        "--text", nargs="+", metavar="FILE", help="files with text: .txt, .jsonl, .parquet, ..."
    )
    parser.set_defaults(run_command=_import)


def _import(arguments: argparse.Namespace) -> None:
    """Print the description of the files, one fact per line, and the config; or write a study."""
    asked = {key: getattr(arguments, key) for key in ("study", "model", "text")}
    if missing := [key for key, value in asked.items() if value is None and any(asked.values())]:
        raise ValueError(f"a study needs --study FILE, --model and --text; add --{missing[0]}")
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
    if arguments.study is not None:
        write_study(arguments, found)
        return
    print("# lines for a study's config; --study, --model and --text write a whole one")
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
    if first.site_out == "resid_pre" and first.hook_out and "resid_pre" not in first.hook_out:
        own = f"resid_pre of layer {first.layer}, which is its layer in a study"
        yield f"              the stream after block {first.layer - 1} is {own}"
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


def write_study(arguments: argparse.Namespace, found: PublishedSet) -> None:
    """Write a study of the dictionaries, and print how to run it.

    Raises ValueError if the study is not valid, such as with another model, if a text is missing, or if its file
    exists.
    """
    import yaml

    from .config import load_study
    from .corpus.source import open_source

    file: Path = arguments.study
    if file.exists():
        raise ValueError(f"--study {file}: exists; name another file, or delete it")
    text = "".join(f"{line}\n" for line in _study_lines(arguments, found))
    study = load_study(yaml.safe_load(text))
    with TemporaryDirectory() as scratch:
        open_source(study.corpus, study.seed, Path(scratch))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    print(f"wrote {file}; run it, open results/{study.name}/report.html, and look at its features:")
    print(f"snakemake --cores all --configfile {file}")
    print(f"circuitloom explore {study.name}")


def _study_lines(arguments: argparse.Namespace, found: PublishedSet) -> Iterator[str]:
    """Yields the lines of a study that scores and tabulates the dictionaries, and trains nothing."""
    yield f"name: {_scalar(arguments.study.stem)}"
    yield "corpus:"
    yield "  source: files"
    yield f"  train: [{', '.join(_scalar(_absolute(file)) for file in arguments.text)}]"
    yield "  # nothing is trained, so most of the text is held out: scores and features are of held-out text"
    yield "  validation_share: 0.9"
    yield "  train_tokens: 10_000"
    yield "  validation_tokens: 200_000"
    yield "language_model:"
    if is_hub_name(arguments.model, None):
        yield "  source: hub"
        yield f"  name: {_scalar(arguments.model)}"
    else:
        yield "  source: path"
        yield f"  path: {_scalar(_absolute(arguments.model))}"
    first, *others = _config_lines(arguments, found)
    yield first
    yield "  tokens: 4096"
    yield "  shard_rows: 4096"
    yield from others
    yield "features:"
    yield "  # of the model's own neurons, none"
    yield "  neurons: 0"


def _scalar(text: str) -> str:
    """Returns a string as YAML, with quotes if it could mean something else."""
    plain = re.fullmatch(r"[A-Za-z/~][\w./~-]*", text) and text.lower() not in ("null", "true", "false")
    return text if plain else json.dumps(text, ensure_ascii=False)


def _config_lines(arguments: argparse.Namespace, found: PublishedSet) -> Iterator[str]:
    """Yields the lines of a study's config that import the files."""
    files = arguments.files if is_hub_set(arguments.files, arguments.revision) else _absolute(arguments.files)
    yield "activations:"
    yield f"  layers: {sorted(found.layers)}"
    yield "dictionaries:"
    yield "  published:"
    yield "    name: published"
    yield f"    files: {_scalar(files)}"
    for key in ("subfolder", "revision", "format"):
        if value := getattr(arguments, key):
            yield f"    {key}: {_scalar(value)}"
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
