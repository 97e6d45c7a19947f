"""Whole documents, each from its own BOS: what a grammar's entropy and a model's cross-entropy are measured on."""

from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int

from ..tables import read_table
from .source import VALIDATION
from .tokenizer import Tokenizer, load_tokenizer


class WholeDocument(NamedTuple):
    """A document as a model is asked to predict it: every token but the first."""

    tokens: Int[np.ndarray, " token"]
    """BOS, the document, and the BOS of the next one, which says that it is over."""
    log_probability: float
    """Log p of the document, its end included, under the grammar that wrote it, in nats."""


class Estimate(NamedTuple):
    """A mean and how far it may be off."""

    mean: float
    standard_error: float


def whole_documents(table: Path, tokenizer: Path, split: str = VALIDATION) -> list[WholeDocument]:
    """The documents of `split` that a grammar wrote, from the table and the tokenizer's folder that `build` wrote.

    Raises ValueError where no grammar wrote them, or there is no BOS to begin and end them with.
    """
    rows = read_table(table)
    rows = rows.filter((pc.field("split") == split) & pc.field("log_probability").is_valid())
    if not rows.num_rows:
        raise ValueError(f"{table}: the {split} documents have no log_probability; only a grammar's have one")
    coder: Tokenizer = load_tokenizer(str(tokenizer))
    if coder.bos_id is None:
        raise ValueError(
            f"{tokenizer}: has no BOS, so a document's beginning and end cannot be told to a model"
        )
    log_p = rows["log_probability"].to_pylist()
    return [
        WholeDocument(np.concatenate([[coder.bos_id], ids, [coder.bos_id]]), score)
        for ids, score in zip(coder.encode(rows["text"].to_pylist()), log_p, strict=True)
    ]


def per_token(nats: Float[np.ndarray, " document"], predictions: Int[np.ndarray, " document"]) -> Estimate:
    """Nats a predicted token over documents that need `nats` each, with the standard error of that ratio of sums.

    With nats = -log p it estimates the grammar's entropy; with a model's losses, its cross-entropy.
    """
    n = len(nats)
    mean = float(nats.sum() / predictions.sum())
    residual = nats - mean * predictions
    # linearised: the variance of a ratio of means about its own value (Cochran 1977, section 2.11)
    spread = float((residual**2).sum() / (n - 1)) if n > 1 else float("nan")
    return Estimate(mean, sqrt(spread / n) / float(predictions.mean()))
