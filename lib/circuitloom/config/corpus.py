"""Config of the corpus: the source of the text, and the length of its sequences."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from .base import ExpandedPath, Section, as_list

Paths = Annotated[list[ExpandedPath], BeforeValidator(as_list, json_schema_input_type=list[str] | str)]


class _Corpus(Section):
    """Keys that all sources share."""

    context: Annotated[int, Field(ge=2)] = 128
    """Number of tokens per sequence, including the BOS."""
    tokenizer: ExpandedPath | None = None
    """Folder or hub name of the tokenizer. With null, it is the tokenizer of the language model. A language model with
    `source: pretrain` has no tokenizer: chronicle then uses its own tokenizer, and real text requires this key."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer, if it comes from the hub."""


class Chronicle(_Corpus):
    """The generated corpus: short histories from a grammar with a seed. Their concepts and their entropy are known."""

    source: Literal["chronicle"]
    """Kind of source, which determines the other keys."""
    train_tokens: PositiveInt = 8_000_000
    """Approximate number of training tokens, in complete sequences."""
    validation_tokens: PositiveInt = 200_000
    """Approximate number of held-out tokens, in complete sequences."""
    concepts: list[str] | None = None
    """Names of the concepts to annotate. With null, all concepts are annotated."""


class _Text(_Corpus):
    """Keys that both sources of real text share."""

    text: str = "text"
    """Column or JSON key with the text of a document."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Text that separates documents within a row, or within a .txt file, which is then read as a whole. It belongs to
    no document. Example: `"\\n<|endoftext|>\\n"`. Strings of special tokens are ordinary text elsewhere."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the training documents to hold out if no held-out text is named."""


class TextFiles(_Text):
    """Local files with the suffix .txt, .jsonl, .json or .parquet."""

    source: Literal["files"]
    """Kind of source, which determines the other keys."""
    train: Paths
    """Path of a file with training text, or a list of paths."""
    validation: Paths | None = None
    """Path of a file with held-out text, or a list of paths. With null, `validation_share` of the training documents is
    held out."""
    train_tokens: PositiveInt | None = None
    """Approximate number of training tokens, in complete sequences. With null, all tokens are used."""
    validation_tokens: PositiveInt | None = None
    """Approximate number of held-out tokens, in complete sequences. With null, all tokens are used."""
    document: Literal["line", "file"] = "line"
    """Documents of a .txt file: each line is a document, or the whole file is one document. Without effect if
    `separator` is set."""


class HubDataset(_Text):
    """A data set of the Hugging Face hub in Parquet format. The data set is streamed."""

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
        return self


Corpus = Annotated[Chronicle | TextFiles | HubDataset, Field(discriminator="source")]
