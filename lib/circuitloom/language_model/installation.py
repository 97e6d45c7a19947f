"""Copies a pretrained model from a folder, from a GGUF file or from the Hugging Face hub into the results."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..config import language_model as sections
from ..config.architectures import ADAPTER, IS_ADAPTER, MULTIMODAL
from ..config.model_shape import GGUF, check_shape, read_model_config, shape_of
from ..core.atomic_io import fingerprint, partial_folder, remove_partial_folder, replace_folder
from ..core.hub import TEXT_FILES, hub_folder
from ..core.progress import announce
from ..corpus.tokenizer import Tokenizer, load_hugging_face_tokenizer, load_tokenizer
from . import legacy_format as legacy
from .anatomy import ANATOMY_FILE, write_anatomy
from .model import load_causal_lm, load_model
from .model_files import (
    PICKLED,
    SOURCE,
    WEIGHTS,
    copy_files,
    describe_source,
    matching,
    text_files,
    weight_files,
    weight_names,
)

UNQUANTIZED = {"F32", "F16", "BF16"}
"""Number formats of tensors in a GGUF file that are not quantized."""
_PROBE = " Hello World,  it's 2,024!\n\tÜber café ﬁ — 日本 🙂\r\n"
"""Text that tokenizers with one vocabulary but other rules split differently."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Names of files with a vocabulary. Without one, transformers makes an empty tokenizer."""


def install(config: sections.ModelFolder | sections.HubModel, tokenizer: Path, output: Path) -> None:
    """Copy the model of the section `config` to the folder `output`.

    The copy has the config, the weights, the tokenizer, the anatomy and a record of the source. Pickled weights and
    those of a GGUF file are converted to safetensors. Of a multimodal model, the text model is copied. If the model has
    no tokenizer, the corpus' tokenizer from the folder `tokenizer` is copied. Raises ValueError if the model does not
    run, or if the model or its weights are missing or damaged.
    """
    file, settings = read_model_config(config)
    shape_of(settings)
    if isinstance(config, sections.HubModel) and config.shape is not None:
        check_shape(config.shape, settings)
    source, origin = _locate(config, file, settings)
    announce("language_model", describe_source(origin))
    with partial_folder(output, fingerprint(**origin)) as partial:
        new = partial / "model"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            _copy(source, origin, settings, config.dtype, new)
            # another version may have written the source folder's anatomy
            (new / ANATOMY_FILE).unlink(missing_ok=True)
            write_anatomy(load_model(new, config.dtype, "cpu").anatomy, new)
        except ValueError as error:
            # name the folder that the user knows, not the copy
            message = str(error).replace(str(new), str(source))
            raise ValueError(f"language_model: {message}; replace its files with complete ones") from error
        if difference := _tokenizer_difference(new, tokenizer):
            origin["tokenizer"] = f"the corpus' tokenizer is not the model's own: {difference}"
            announce("language_model", origin["tokenizer"])
        if not (new / "tokenizer_config.json").is_file():
            copy_files(text_files(tokenizer), new)
        (new / SOURCE).write_text(json.dumps(origin, indent=2) + "\n")
        replace_folder(new, output)
        remove_partial_folder(partial)


def _tokenizer_difference(model: Path, corpus: Path) -> str:
    """Returns how the tokenizer in the folder of a model differs from that of the corpus, in words.

    Returns an empty text if they agree, or if the model has no tokenizer that loads.
    """
    if not any((model / name).is_file() for name in _VOCABULARIES):
        return ""
    try:
        own = load_hugging_face_tokenizer(str(model))
    except ValueError:
        return ""
    used = load_tokenizer(str(corpus))
    ids, own_ids = used.backend.get_vocab(), own.backend.get_vocab()
    if different := sum(own_ids.get(token) != number for token, number in ids.items()):
        return f"{different:,} of its {len(ids):,} tokens have another id there, or none"
    return "" if _probe(own) == _probe(used) else "it splits text into other tokens"


def _probe(tokenizer: Tokenizer) -> list[int] | None:
    """Returns the tokens of a text, or None if the tokenizer refuses its words."""
    try:
        return tokenizer.encode([_PROBE])[0].tolist()
    # the library `tokenizers` raises no other class
    except Exception:
        return None


def _copy(source: Path, origin: dict[str, str], settings: dict[str, Any], dtype: str, new: Path) -> None:
    """Copy or convert the model in `source` to the folder `new`."""
    if source.suffix == GGUF:
        _copy_gguf(source, dtype, new)
        return
    # copies: moving a folder breaks a symbolic link, and training in the source would change a hard-linked file
    copy_files(text_files(source), new)
    if legacy.is_legacy(new):
        legacy.convert(source, origin.get("name") or source.name, new)
    elif settings.get("model_type") in MULTIMODAL:
        _copy_text_model(source, dtype, new)
    elif files := weight_files(source):
        copy_files(files, new)
    else:
        load_model(source, "float32", "cpu").module.save_pretrained(new)  # type: ignore[operator]


def _copy_gguf(file: Path, dtype: str, new: Path) -> None:
    """Dequantize the weights of a GGUF file. Write config, weights and tokenizer to the folder `new`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded = load_causal_lm(file.parent, torch.float32, gguf_file=file.name)
    # transformers marks the config as quantized, and refuses to save the model as it is
    marks = ("quantization_config", "_name_or_path", "_model_name_or_path")
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in marks}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), trust_remote_code=False)
    model.load_state_dict(loaded.state_dict())
    model.to(getattr(torch, dtype)).save_pretrained(new)
    load_hugging_face_tokenizer(str(file)).save(new)


def _copy_text_model(folder: Path, dtype: str, new: Path) -> None:
    """Write config and weights of the text model of a multimodal model to the folder `new`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    number = getattr(torch, dtype)
    full = load_causal_lm(folder, number, loader=AutoModelForImageTextToText)
    config = full.config.get_text_config(decoder=True)
    embedding, unembedding = full.get_input_embeddings(), full.get_output_embeddings()
    config.tie_word_embeddings = embedding.weight is unembedding.weight
    text = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=number)
    text.get_decoder().load_state_dict(full.get_decoder().state_dict())
    text.get_output_embeddings().load_state_dict(unembedding.state_dict())
    text.save_pretrained(new)


def _locate(
    config: sections.ModelFolder | sections.HubModel, file: Path, settings: dict[str, Any]
) -> tuple[Path, dict[str, str]]:
    """Returns the model's folder or GGUF file, and a record of the model's source.

    `file` is the model's config.json or GGUF file. Raises ValueError if the folder has no weights.
    """
    if isinstance(config, sections.HubModel):
        key, remedy = "name", "set HF_HUB_OFFLINE=0 to download them"
        source = _download(config)
        if (source / ADAPTER).is_file():
            raise ValueError(f"language_model.name: {config.name} {IS_ADAPTER}")
        # the hub's cache names a snapshot's folder after its commit
        origin = {"source": "hub", "name": config.name, "revision": config.revision, "commit": source.name}
    else:
        key, remedy = "path", "put them there, or name another folder"
        source = Path(config.path)
        origin = {"source": "path", "path": str(source.resolve())}
    if settings.get("model_type") in MULTIMODAL:
        origin["part"] = f"the text model of a {settings['model_type']} model"
    if file.suffix == GGUF:
        return source, origin | {"weights": _number_formats(file)}
    try:
        weights = weight_files(source) or matching(source, PICKLED)
    except ValueError as error:
        raise ValueError(f"language_model.{key}: weights are missing: {error}; {remedy}") from error
    if not weights:
        raise ValueError(
            f"language_model.{key}: {source} has no weights ({', '.join((WEIGHTS, *PICKLED))}); {remedy}"
        )
    return source, origin


def _number_formats(file: Path) -> str:
    """Returns the number formats of a GGUF file's tensors in words, the most frequent first."""
    from collections import Counter

    from gguf import GGUFReader

    formats = Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)
    names = [name for name, _ in formats.most_common()]
    verb = "read" if set(names) <= UNQUANTIZED else "dequantized"
    return f"{verb} from {', '.join(names)}"


def _download(config: sections.HubModel) -> Path:
    """Download the model. Returns the model's folder in the hub's cache.

    Of the weights, only those that the index names are downloaded. Pickled weights are downloaded only if the
    repository has no other weights.
    """

    def fetch(*patterns: str) -> Path:
        return hub_folder(config.name, config.revision, (*TEXT_FILES, *patterns), "language_model.name")

    folder = fetch()
    try:
        names = weight_names(folder)
    except ValueError:
        # `_locate` says what is wrong with the index
        return folder
    folder = fetch(*names)
    return folder if any((folder / name).is_file() for name in names) else fetch(*PICKLED)
