"""Tokenizers: chronicle's word tokenizer, or the tokenizer of a language model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from ..core.errors import first_line
from ..core.hub import TEXT_FILES, hub_folder, is_hub_name
from .token_names import token_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = "<bos>"
"""Text of chronicle's BOS (beginning-of-sequence token). The BOS has id 0."""
IDS_FILE = "tokenizer_ids.json"
"""File with the ids of BOS and EOS, which `Tokenizer.save` writes next to the tokenizer's other files."""
_BACKEND_FILE, _CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


_BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|begin▁of▁sentence|>", "[BOS]")
_EOS_NAMES = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|end▁of▁sentence|>", "[EOS]")
"""Usual names of BOS and EOS."""
_HIDDEN = "\U0010ffff"
"""Unicode noncharacter before the strings of tokens that no text must give."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that adds no special tokens, and that reads the strings of special tokens as ordinary text."""

    backend: Backend
    bos_id: int | None
    """Id of the BOS, which may be 0. None if the tokenizer has no BOS."""
    eos_id: int | None
    """Id of the EOS (end-of-sequence token). None if the tokenizer has no EOS."""
    hugging_face: "PreTrainedTokenizerFast | None" = None
    """The tokenizer as transformers has loaded it. None if it was loaded or made without transformers."""
    assumed: str = ""
    """Says where BOS or EOS were found, if the tokenizer's config names neither."""

    @property
    def separator_id(self) -> int | None:
        """Id of the token between documents: the BOS, or the EOS if the tokenizer has no BOS. None if it has neither.

        This token is neither trained on nor scored.
        """
        return self.eos_id if self.bos_id is None else self.bos_id

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Ids of all tokens. Kept, because reading 262,144 of them takes half a second."""
        return self.backend.get_vocab()

    @cached_property
    def vocabulary(self) -> int:
        """Vocabulary size: the largest token id plus 1."""
        return max(self._ids.values()) + 1

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenization rules, the vocabulary, and the ids of BOS and EOS."""
        text = f"{self.backend.to_str()} {self.bos_id} {self.eos_id}"
        return sha256(text.encode()).hexdigest()

    @cached_property
    def unknown_id(self) -> int | None:
        """Id of the token for text that has no tokens of its own. None if the tokenizer has none."""
        model = self.backend.model
        if isinstance(model, Unigram):
            # the class does not tell
            return json.loads(self.backend.to_str())["model"]["unk_id"]
        return self.backend.token_to_id(model.unk_token) if model.unk_token else None

    @cached_property
    def has_every_byte(self) -> bool:
        """Whether the vocabulary has a token for each byte, so that no text is unknown."""
        model = self.backend.model
        if not isinstance(model, BPE):
            return False
        tokens = [f"<0x{byte:02X}>" for byte in range(256)] if model.byte_fallback else ByteLevel.alphabet()
        return all(self.backend.token_to_id(token) is not None for token in tokens)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Maps the text of each special token, BOS and EOS among them, to its id."""
        added = self.backend.get_added_tokens_decoder()
        special = {
            token.content: number for number, token in added.items() if token.special and token.content
        }
        named = {str(self.backend.id_to_token(n)): n for n in (self.bos_id, self.eos_id) if n is not None}
        return special | named

    def encode(self, texts: Sequence[str], special: bool = False) -> list[Int[np.ndarray, " token"]]:
        """Returns the token ids (int32) of each text, without BOS or EOS.

        The string of a special token, such as `<s>`, is ordinary text. With `special`, it gives the special token: only
        for a text that a chat template wrote, or where the user asks for it.
        """
        backend = self._special_backend if special else self._text_backend
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_offsets(
        self, texts: Sequence[str], special: bool = False
    ) -> list[tuple[Int[np.ndarray, " token"], Int[np.ndarray, "token 2"]]]:
        """Returns the token ids of each text, as `encode` does, and their offsets.

        offsets[token] = (start, end), as character indices in the text. The end is exclusive. Tokens that are parts of
        one character have the same offsets.
        """
        backend = self._special_backend if special else self._text_backend
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(e.ids, np.int32), np.array(e.offsets, np.int64).reshape(-1, 2)) for e in encodings]

    def offsets(self, text: str, special: bool = False) -> Int[np.ndarray, "token 2"]:
        """Returns the offsets of the tokens of `text`, as `encode_with_offsets` does."""
        ((_, offsets),) = self.encode_with_offsets([text], special)
        return offsets

    @cached_property
    def _text_backend(self) -> Backend:
        """The backend that reads special tokens as ordinary text."""
        self.backend.encode_special_tokens = True
        given = self._given_by_text()
        return _hide_tokens(self.backend, given) if given else self.backend

    def _given_by_text(self) -> set[str]:
        """Returns the special tokens that the backend still gives for their own strings."""
        special = self.special_tokens
        added = self.backend.get_added_tokens_decoder()
        unmarked = {token for token, n in special.items() if n in added and not added[n].special}
        if isinstance(self.backend.model, BPE):
            encodings = self.backend.encode_batch(list(special), add_special_tokens=False)
            return unmarked | {
                token for token, e in zip(special, encodings, strict=True) if special[token] in e.ids
            }
        # the other models use each piece of their vocabulary, special or not
        pieces = self.backend.get_vocab(with_added_tokens=False)
        return unmarked | {token for token in special if token in pieces}

    @cached_property
    def _special_backend(self) -> Backend:
        """The backend that parses special tokens. A copy, because the setting belongs to the backend."""
        copy = Backend.from_str(self.backend.to_str())
        copy.encode_special_tokens = False
        return copy

    def strings(self) -> list[str]:
        """Returns strings[token id], all different: the text of each token, as `token_names` writes it."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        return token_names(self.backend)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Maps each of `strings()` to its token id."""
        return {name: number for number, name in enumerate(self._names)}

    @property
    def separate_words(self) -> bool:
        """True if tokens are words without blanks, which text joins with blanks, as in chronicle's tokenizer."""
        return self.backend.decoder is None

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`, for transformers and for `load_tokenizer`."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.hugging_face is None:
            self.backend.save(str(folder / _BACKEND_FILE))
            (folder / _CONFIG_FILE).write_text(json.dumps(self._config(), indent=2) + "\n")
        else:
            self.hugging_face.save_pretrained(folder)
        ids = {"bos_id": self.bos_id, "eos_id": self.eos_id, "files": _files_digest(folder)}
        (folder / IDS_FILE).write_text(json.dumps(ids, indent=2) + "\n")

    def _config(self) -> dict[str, str | int]:
        """Returns the content of tokenizer_config.json, as transformers writes it."""
        special = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        tokens = {
            name: str(self.backend.id_to_token(number))
            for name, number in special.items()
            if number is not None
        }
        # transformers writes this length for a tokenizer without a limit
        limit = {"model_max_length": int(1e30)}
        return {"backend": "tokenizers", **tokens, **limit, "tokenizer_class": "TokenizersBackend"}


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """Load a tokenizer from the folder `name`, or from the hub repository `name`.

    `name` is the path of the folder, or the name of the tokenizer on the hub. A folder that `Tokenizer.save` wrote is
    read without transformers, whose import takes seconds. Raises ValueError if the tokenizer cannot be loaded. Also
    raises ValueError if the library `tokenizers` does not implement this tokenizer.
    """
    return _load_saved(Path(name)) or load_hugging_face_tokenizer(name, revision)


def _load_saved(folder: Path) -> Tokenizer | None:
    """Returns the tokenizer in `folder`. Returns None if `Tokenizer.save` did not write the files in `folder`."""
    try:
        ids = json.loads((folder / IDS_FILE).read_text())
        # other tools may have saved another tokenizer into the folder since
        if ids["files"] != _files_digest(folder):
            return None
        backend = Backend.from_file(str(folder / _BACKEND_FILE))
        return Tokenizer(_without_limits(backend), ids["bos_id"], ids["eos_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files_digest(folder: Path) -> str:
    """Returns a digest of the files that determine the tokenizer in `folder` and its special tokens."""
    return sha256(
        b"".join((folder / name).read_bytes() for name in (_BACKEND_FILE, _CONFIG_FILE))
    ).hexdigest()


def _without_limits(backend: Backend) -> Backend:
    """Switches off truncation, padding and BPE dropout, which a tokenizer.json may switch on. Returns `backend`."""
    backend.no_truncation()
    backend.no_padding()
    if isinstance(backend.model, BPE):
        backend.model.dropout = None
    return backend


def _hide_tokens(backend: Backend, tokens: set[str]) -> Backend:
    """Returns a copy of `backend` in which no text gives one of `tokens`. Ids stay the same."""

    def hide(token: str) -> str:
        return _HIDDEN + token if token in tokens else token

    state = json.loads(backend.to_str())
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hide(token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[hide(token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = hide(model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & tokens]
    for added in state["added_tokens"]:
        added["content"] = hide(added["content"])
    copy = Backend.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy


def load_hugging_face_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """Load a tokenizer through transformers, with everything that transformers saves, such as a chat template.

    `name` and the errors are those of `load_tokenizer`; `name` may also be a GGUF file. With a `revision`, `name` is a
    hub name even if there is a folder of this name.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    folder, file = Path(name).expanduser(), {}
    if is_hub_name(name, revision):
        folder = hub_folder(name, revision or "main", TEXT_FILES, "corpus.tokenizer")
    elif folder.suffix == ".gguf" and folder.is_file():
        folder, file = folder.parent, {"gguf_file": folder.name}
    elif not folder.is_dir():
        raise ValueError(
            f"corpus.tokenizer: {name} is not a folder; name one with a tokenizer, or leave it out"
        )
    logging.set_verbosity_error()
    try:
        # downloaded code is never run, and the terminal is not asked whether it should be
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **file
        )
    # ImportError: a package is missing, such as gguf
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"corpus.tokenizer: {name} has no tokenizer that loads ({first_line(error)}); name another"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"corpus.tokenizer: {name} has no tokenizer.json; convert it with transformers first"
        )
    if file:
        tokenizer = _without_added_tokens(tokenizer)
    backend = _without_limits(tokenizer.backend_tokenizer)
    bos_id, eos_id = _id(tokenizer.bos_token_id), _id(tokenizer.eos_token_id)
    if bos_id is not None:
        return Tokenizer(backend, bos_id, eos_id, tokenizer)
    bos_id, found_eos_id, assumed = _find_separators(backend, is_named=eos_id is not None)
    if bos_id is not None:
        tokenizer.bos_token = backend.id_to_token(bos_id)
    if eos_id is None and found_eos_id is not None:
        eos_id = found_eos_id
        tokenizer.eos_token = backend.id_to_token(eos_id)
    return Tokenizer(backend, bos_id, eos_id, tokenizer, assumed)


def _find_separators(backend: Backend, is_named: bool) -> tuple[int | None, int | None, str]:
    """Returns (BOS, EOS, how they were found) of a tokenizer whose config names no BOS. None for what is not found.

    `is_named` tells whether the config names an EOS. The special tokens are then complete, and their names are not
    searched.
    """
    before, after = _template(backend)
    if len(before) == 1 and backend.id_to_token(before[0]):
        how = "its template begins each text with this token"
        return before[0], after[0] if len(after) == 1 else None, how
    if is_named:
        return None, None, ""
    special = {t.content: n for n, t in backend.get_added_tokens_decoder().items() if t.special}
    bos, eos = ([token for token in names if token in special] for names in (_BOS_NAMES, _EOS_NAMES))
    how = "one of its special tokens has a usual name" if bos or eos else ""
    return special[bos[0]] if bos else None, special[eos[0]] if eos else None, how


def _template(backend: Backend) -> tuple[list[int], list[int]]:
    """Returns the ids that the tokenizer's own template puts before and after a text."""
    if backend.post_processor is None:
        return [], []
    probe = Backend(WordLevel({"a": 0}, unk_token="a"))
    probe.post_processor = backend.post_processor
    encoding = probe.encode("a")
    place = encoding.special_tokens_mask.index(0)
    return encoding.ids[:place], encoding.ids[place + 1 :]


def _without_added_tokens(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """Returns the tokenizer of a GGUF file without tokens that the file does not have.

    transformers adds <|endoftext|> to some (Llama 3), with an id that the model does not know.
    """
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    size = len(backend.get_vocab(with_added_tokens=False))
    if max(backend.get_vocab().values()) < size:
        return tokenizer
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < size]
    special = {
        name: token
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str) and (backend.token_to_id(token) or 0) < size
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(state)), chat_template=tokenizer.chat_template, **special
    )


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer that splits text at spaces. The BOS has id 0, and `words` have the ids from 1. Encoding an
    unknown word raises an error."""
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Backend(WordLevel({word: number for number, word in enumerate([BOS, *words])}))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens([BOS])
    # transformers sets this processor, which adds nothing, when it loads a tokenizer that has none
    backend.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])  # pyright: ignore[reportAttributeAccessIssue]
    return Tokenizer(backend, bos_id=0, eos_id=None)


def _id(value: object) -> int | None:
    assert value is None or isinstance(value, int)
    return value
