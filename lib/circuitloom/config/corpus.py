"""Config of the corpus: the source of the text, and the length of its sequences."""

from glob import iglob
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from .base import ExpandedPath, Section, as_list

Paths = Annotated[list[ExpandedPath], BeforeValidator(as_list, json_schema_input_type=list[str] | str)]


class _Corpus(Section):
    """Keys that all sources share."""

    context: Annotated[int, Field(ge=2)] = 128
    """Number of tokens per sequence, including the BOS."""
    tokenizer: ExpandedPath | None = None
    """Folder, GGUF file or hub name of the tokenizer. A folder of this name goes before the hub. With null, it is the
    tokenizer of the language model. A language model with `source: pretrain` has no tokenizer: the words of generated
    text are then its tokens, and real text requires this key."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer, if it comes from the hub. With a revision, `tokenizer` is a hub name even
    if there is a folder of this name."""

    @property
    def generated(self) -> bool:
        """Whether a grammar generates the text, so that the concepts of every word and the entropy are known."""
        return False


class _Generated(_Corpus):
    """Keys that both generated corpora share."""

    train_tokens: PositiveInt = 8_000_000
    """Approximate number of training tokens, in complete sequences."""
    validation_tokens: PositiveInt = 200_000
    """Approximate number of held-out tokens, in complete sequences."""
    concepts: list[str] | None = None
    """Names of the concepts to annotate. With null, all concepts are annotated."""

    @property
    def generated(self) -> bool:
        """Whether a grammar generates the text, so that the concepts of every word and the entropy are known."""
        return True


class Chronicle(_Generated):
    """A generated corpus: short histories from a grammar with a seed. Their concepts and their entropy are known."""

    source: Literal["chronicle"]
    """Kind of source, which determines the other keys."""


class Guilds(_Generated):
    """A generated corpus of facts that take two steps: the name of a person determines the guild, and the guild what
    the person does (docs/guilds.md). Some facts are held out of the text. A context of 64 has most documents whole."""

    source: Literal["guilds"]
    """Kind of source, which determines the other keys."""


class _Text(_Corpus):
    """Keys that both sources of real text share."""

    text: str = "text"
    """Column or JSON key with the text of a document. Dots lead into nested columns and objects: `data.text`. A column
    that is itself named `data.text` goes first. No other column is read. Text must be strings, or bytes in UTF-8. A
    JSON row that is a string instead of an object is itself the text. A line of JSON Lines that is a list is no
    text."""
    messages: str | None = None
    """Column or JSON key with chat messages, lists of {role, content}, instead of `text`. The tokenizer's chat template
    turns them into text. Messages that contain a special token are not text. A template may leave out messages or parts
    of them, such as those of a role that it does not know, earlier thoughts, or tool calls: they are counted. Its BOS
    becomes the BOS of the document."""
    not_text: Literal["error", "skip"] = "error"
    """What happens to a row that is not text, such as a number or a list: `error` stops with its file, row and type;
    `skip` leaves it out and counts it. Rows without text (null, blank, or without the key) are always left out and
    counted. A file that is not UTF-8 or not JSON, or a .txt file with NUL bytes, always stops the run."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Text that separates documents within a row, or within a .txt file, which is then read as a whole. It belongs to
    no document. Example: `"\\n<|endoftext|>\\n"`. Strings of special tokens are ordinary text elsewhere."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the training documents to hold out if no held-out text is named."""

    @property
    def column(self) -> str:
        """Name of the column that is read."""
        return self.messages or self.text

    @model_validator(mode="after")
    def _one_column(self) -> "_Text":
        if self.messages is not None and self.text != "text":
            raise ValueError("text and messages are both set; leave one of them out")
        return self


class TextFiles(_Text):
    """Local files: .txt, .jsonl, .ndjson, .json (JSON Lines, an array, or objects) and .parquet. All but .parquet may
    be compressed: .gz, .bz2, .xz, .lzma, .zst, .lz4, or .zip with one file, whose own name must not say otherwise."""

    source: Literal["files"]
    """Kind of source, which determines the other keys."""
    train: Paths
    """Path of a file with training text, or a list of paths. Paths are taken literally, unless `glob` is true. No file
    may be named twice, here or in `validation`."""
    validation: Paths | None = None
    """Path of a file with held-out text, or a list of paths. With null, `validation_share` of the training documents is
    held out."""
    train_tokens: PositiveInt | None = None
    """Approximate number of training tokens, in complete sequences. With null, all tokens are used."""
    validation_tokens: PositiveInt | None = None
    """Approximate number of held-out tokens, in complete sequences. With null, all tokens are used."""
    glob: bool = False
    """Whether `train` and `validation` are patterns: `*`, `?`, `[abc]`, and `**` for any folders. Matching files are
    read in the order of their sorted paths."""
    document: Literal["line", "file"] = "line"
    """Documents of a .txt file: each line is a document, or the whole file is one document. Without effect if
    `separator` is set."""

    def files(self, split: str) -> list[str]:
        """Returns the paths of the files of `train` or `validation`. Without `validation`, they are the same."""
        paths = self.validation or self.train if split == "validation" else self.train
        if not self.glob:
            return paths
        # Path.glob neither takes absolute patterns nor follows links to folders
        found = {path for pattern in paths for path in iglob(pattern, recursive=True)}  # noqa: PTH207
        return sorted(path for path in found if Path(path).is_file())


class HubDataset(_Text):
    """A data set of the Hugging Face hub, of the same formats as files, or of any other that the library `datasets`
    streams. The data set is not downloaded as a whole. Of a folder with files of several formats, `datasets` takes one
    format; the other files are counted."""

    source: Literal["hub"]
    """Kind of source, which determines the other keys."""
    dataset: ExpandedPath
    """Name on the hub, or a local folder in the hub's layout."""
    subset: str | None = None
    """Name of the data set's configuration (subset), if it has several."""
    train_split: str = "train"
    """Name of the split with the training text."""
    validation_split: str | None = None
    """Name of the split with the held-out text. With null, `validation_share` of the training documents is held out."""
    revision: str = "main"
    """Branch, tag or commit of the data set. The results record the commit."""
    train_tokens: PositiveInt = 60_000_000
    """Approximate number of training tokens, in complete sequences."""
    validation_tokens: PositiveInt = 1_000_000
    """Approximate number of held-out tokens, in complete sequences."""

    @model_validator(mode="after")
    def _splits_differ(self) -> "HubDataset":
        if self.validation_split == self.train_split:
            raise ValueError(
                "validation_split is the training split; name another, or leave it out to hold out a share"
            )
        names = [
            name.strip()
            for split in (self.train_split, self.validation_split)
            if split
            for name in split.split("+")
        ]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"train_split and validation_split name {min(twice)} twice; name it once")
        return self


Corpus = Annotated[Chronicle | Guilds | TextFiles | HubDataset, Field(discriminator="source")]
