"""Source of the text, and the length of its sequences."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from .base import ExpandedPath, Section, as_list

Paths = Annotated[list[ExpandedPath], BeforeValidator(as_list, json_schema_input_type=list[str] | str)]


class _Corpus(Section):
    """Keys of every source."""

    context: Annotated[int, Field(ge=2)] = 128
    """Tokens per sequence, including the BOS."""
    tokenizer: ExpandedPath | None = None
    """Folder or hub name of the tokenizer; null: the language model's. For a model pretrained here, chronicle has its
    own, and real text requires one."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of a tokenizer from the hub."""


class Chronicle(_Corpus):
    """The generated corpus: a seeded grammar of short histories with known concepts and entropy."""

    source: Literal["chronicle"]
    """Kind of source."""
    train_tokens: PositiveInt = 8_000_000
    """Approximate number of training tokens (complete sequences)."""
    validation_tokens: PositiveInt = 200_000
    """Approximate number of held-out tokens (complete sequences)."""
    concepts: list[str] | None = None
    """Concepts to annotate; null: all."""


class _Text(_Corpus):
    """Keys of both sources of real text."""

    text: str = "text"
    """Column (or JSON key) with the text of a document."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the documents held out, if the source has no validation split."""


class TextFiles(_Text):
    """Local files: .txt (one document per line or per file, see `document`), .jsonl, .json or .parquet."""

    source: Literal["files"]
    """Kind of source."""
    train: Paths
    """File or files of training text."""
    validation: Paths | None = None
    """File or files of held-out text; null: hold out `validation_share` of the training documents."""
    train_tokens: PositiveInt | None = None
    """Approximate number of training tokens (complete sequences); null: all."""
    validation_tokens: PositiveInt | None = None
    """Approximate number of held-out tokens (complete sequences); null: all."""
    document: Literal["line", "file"] = "line"
    """Unit of a document in a .txt file."""


class HubDataset(_Text):
    """A data set of the Hugging Face hub in Parquet format, streamed."""

    source: Literal["hub"]
    """Kind of source."""
    dataset: ExpandedPath
    """Name on the hub, or a local folder in the hub's layout."""
    subset: str | None = None
    """Configuration of the data set, if it has several."""
    train_split: str = "train"
    """Split of the training text."""
    validation_split: str | None = None
    """Split of the held-out text; null: hold out `validation_share` of the training documents."""
    revision: str = "main"
    """Branch, tag or commit; the resolved commit is recorded in the results."""
    train_tokens: PositiveInt = 60_000_000
    """Approximate number of training tokens (complete sequences)."""
    validation_tokens: PositiveInt = 1_000_000
    """Approximate number of held-out tokens (complete sequences)."""

    @model_validator(mode="after")
    def _splits_differ(self) -> "HubDataset":
        if self.validation_split == self.train_split:
            raise ValueError(
                "validation_split is the training split; name another, or leave it out to hold out a share"
            )
        return self


Corpus = Annotated[Chronicle | TextFiles | HubDataset, Field(discriminator="source")]
