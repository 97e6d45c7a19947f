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


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that adds no special tokens."""

    backend: Backend
    bos_id: int | None
    """Id of the BOS, which may be 0. None if the tokenizer has no BOS."""
    eos_id: int | None
    """Id of the EOS (end-of-sequence token). None if the tokenizer has no EOS."""
    hugging_face: "PreTrainedTokenizerFast | None" = None
    """The tokenizer as transformers has loaded it. None if it was loaded or made without transformers."""

    @cached_property
    def vocabulary(self) -> int:
        """Vocabulary size: the largest token id plus 1."""
        return max(self.backend.get_vocab().values()) + 1

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenization rules, the vocabulary, and the ids of BOS and EOS."""
        text = f"{self.backend.to_str()} {self.bos_id} {self.eos_id}"
        return sha256(text.encode()).hexdigest()

    def encode(self, texts: Sequence[str], special: bool = False) -> list[Int[np.ndarray, " token"]]:
        """Returns the token ids (int32) of each text, without BOS or EOS.

        Special tokens that a text spells out, such as `</s>`, stay text. With `special`, they become special tokens.
        """
        self.backend.encode_special_tokens = not special
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def offsets(self, text: str, special: bool = False) -> Int[np.ndarray, "token 2"]:
        """Returns offsets[token] = (start, end), as character indices in `text`. The end is exclusive. `special` is
        that of `encode`."""
        self.backend.encode_special_tokens = not special
        encoding = self.backend.encode(text, add_special_tokens=False)
        return np.array(encoding.offsets, np.int64).reshape(-1, 2)

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

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Maps the text of each special token to its id."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special and token.content}

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
    """Switches off truncation and padding, which a tokenizer.json may switch on. Returns `backend`."""
    backend.no_truncation()
    backend.no_padding()
    return backend


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
    ids = _id(tokenizer.bos_token_id), _id(tokenizer.eos_token_id)
    return Tokenizer(_without_limits(tokenizer.backend_tokenizer), *ids, tokenizer)


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
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    backend = Backend(WordLevel({word: number for number, word in enumerate([BOS, *words])}))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens([BOS])
    # transformers sets this processor, which adds nothing, when it loads a tokenizer that has none
    backend.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])  # pyright: ignore[reportAttributeAccessIssue]
    return Tokenizer(backend, bos_id=0, eos_id=None)


def _id(value: object) -> int | None:
    assert value is None or isinstance(value, int)
    return value
