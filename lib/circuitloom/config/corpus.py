"""Where the text comes from, and how it is cut into sequences."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from .base import ExpandedPath, Section, as_list

Paths = Annotated[list[ExpandedPath], BeforeValidator(as_list)]


class _Corpus(Section):
    """What every source has."""

    context: Annotated[int, Field(ge=2)] = 128
    """Tokens in a sequence, the BOS in front included."""
    tokenizer: ExpandedPath | None = None
    """Folder or hub name of the tokenizer; null takes the language model's. Where a model is pretrained, chronicle
    brings its own, and real text needs one."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of a tokenizer from the hub."""


class Chronicle(_Corpus):
    """The generated corpus: a seeded grammar of short histories whose concepts and entropy are known."""

    source: Literal["chronicle"]
    """Which kind of source this is."""
    train_tokens: PositiveInt = 8_000_000
    """Stop after about this many training tokens (whole sequences)."""
    validation_tokens: PositiveInt = 200_000
    """Stop after about this many held-out tokens (whole sequences)."""
    concepts: list[str] | None = None
    """Restrict the concept table to these; null keeps all."""


class _Text(_Corpus):
    """What the two sources of real text share."""

    text: str = "text"
    """Name of the column (or JSON key) that holds a document's text."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents held out, where the source has no validation part of its own."""


class TextFiles(_Text):
    """Local files: .txt (a document a line, or a file: see `document`), .jsonl or .json, .parquet."""

    source: Literal["files"]
    """Which kind of source this is."""
    train: Paths
    """File or files of training text."""
    validation: Paths | None = None
    """File or files of held-out text; null holds out `validation_share` of the training documents."""
    train_tokens: PositiveInt | None = None
    """Stop after about this many training tokens (whole sequences); null takes all there are."""
    validation_tokens: PositiveInt | None = None
    """Stop after about this many held-out tokens (whole sequences); null takes all there are."""
    document: Literal["line", "file"] = "line"
    """What a document is in a .txt file."""


class HubDataset(_Text):
    """A data set of the Hugging Face hub in Parquet form, streamed."""

    source: Literal["hub"]
    """Which kind of source this is."""
    dataset: ExpandedPath
    """Name on the hub, or a local folder in the hub's layout."""
    subset: str | None = None
    """The data set's configuration, where it has several."""
    train_split: str = "train"
    """Split that training text comes from."""
    validation_split: str | None = None
    """Split that held-out text comes from; null holds out `validation_share` of the training documents."""
    revision: str = "main"
    """Branch, tag or commit; the commit it resolves to is recorded in the results."""
    train_tokens: PositiveInt = 60_000_000
    """Stop after about this many training tokens (whole sequences)."""
    validation_tokens: PositiveInt = 1_000_000
    """Stop after about this many held-out tokens (whole sequences)."""

    @model_validator(mode="after")
    def _splits_differ(self) -> "HubDataset":
        if self.validation_split == self.train_split:
            raise ValueError(
                "validation_split is the training split; name another, or leave it out to hold out a share"
            )
        return self


Corpus = Annotated[Chronicle | TextFiles | HubDataset, Field(discriminator="source")]
