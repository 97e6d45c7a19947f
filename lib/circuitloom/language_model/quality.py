"""How good a language model is: cross-entropy on held-out text, distance from the grammar, greater-than. The rows of
table `language_model`: the figures that apply to a model and the text it is studied on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core.progress import progress
from ..corpus.chronicle.grammar import greater_than_prompts
from ..corpus.tokenizer import Tokenizer
from ..corpus.tokens import Tokens, scored_positions
from .model import LanguageModel

_BATCH = 32
"""Sequences a forward pass."""


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of next-token predictions, nats a token."""

    masked: float
    """Predictions made from scored positions: not from position 0, nor from a BOS."""
    every: float
    """Every prediction."""
    n_tokens: int
    """Predictions in `every`."""


@dataclass(frozen=True)
class GrammarDistance:
    """A model against the grammar that wrote the documents, on the same documents; nats a predicted token."""

    cross_entropy: float
    entropy: float
    """Mean of -log p under the grammar."""
    standard_error: float
    """Of the difference of the two, documents being independent."""
    n_documents: int

    @property
    def percent(self) -> float:
        """How far the cross-entropy lies above the entropy, in percent of it."""
        return 100 * (self.cross_entropy / self.entropy - 1)

    @property
    def percent_error(self) -> float:
        """Standard error of `percent`."""
        return 100 * self.standard_error / self.entropy


@torch.no_grad()
def cross_entropy(model: LanguageModel, tokens: Tokens) -> CrossEntropy:
    """Over all held-out sequences as they are packed."""
    masked = every = 0.0
    n_masked = n_every = 0
    with progress("language_model: held-out text", len(tokens), "sequences") as bar:
        for start in range(0, len(tokens), _BATCH):
            batch = tokens.take(slice(start, start + _BATCH))
            loss = _losses(model, batch)
            scored = scored_positions(batch, tokens.bos_id)[:, :-1]
            masked, n_masked = masked + float(loss[scored].sum()), n_masked + int(scored.sum())
            every, n_every = every + float(loss.sum()), n_every + loss.numel()
            bar.update(len(batch))
    return CrossEntropy(masked / max(n_masked, 1), every / n_every, n_every)


@torch.no_grad()
def document_losses(
    model: LanguageModel, documents: Sequence[Int[np.ndarray, " _token"]]
) -> Float[np.ndarray, " document"]:
    """Summed cross-entropy, in nats, of each document's tokens after its first (its BOS)."""
    total = np.empty(len(documents))
    # neighbours of equal length, so that little is computed on padding
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    with progress("language_model: documents", len(documents), "documents") as bar:
        for start in range(0, len(order), _BATCH):
            group = order[start : start + _BATCH]
            lengths = torch.tensor([len(documents[i]) for i in group])
            batch = torch.zeros(len(group), int(lengths.max()), dtype=torch.int64)
            for row, i in enumerate(group):
                batch[row, : len(documents[i])] = torch.from_numpy(documents[i].astype(np.int64))
            inside = torch.arange(1, batch.shape[1]) < lengths[:, None]
            total[group] = (_losses(model, batch) * inside).sum(1).numpy()
            bar.update(len(group))
    return total


def grammar_distance(
    model: LanguageModel,
    documents: Sequence[Int[np.ndarray, " _token"]],
    log_probability: Float[np.ndarray, " document"],
    bos_id: int,
) -> GrammarDistance:
    """The model against the grammar on whole documents, each from a BOS of its own to the BOS that closes it.

    `log_probability` is each document's under the grammar, in nats, its end included.
    """
    whole = [np.concatenate([[bos_id], document, [bos_id]]) for document in documents]
    predicted = np.array([len(document) - 1 for document in whole], np.float64)
    loss = document_losses(model, whole).astype(np.float64)
    excess = loss + log_probability
    # the standard error of a ratio of means
    residual = excess - predicted * excess.sum() / predicted.sum()
    error = residual.std(ddof=1) * math.sqrt(len(whole)) / predicted.sum() if len(whole) > 1 else math.nan
    n = predicted.sum()
    return GrammarDistance(loss.sum() / n, -log_probability.sum() / n, error, len(whole))


@torch.no_grad()
def greater_than(
    model: LanguageModel,
    prompts: Int[Tensor, "prompt position"],
    years: Int[Tensor, " prompt"],
    numbers: Int[Tensor, " number"],
) -> float:
    """Mean over prompts of P(y > YY) - P(y <= YY) for the two-digit number y that comes next.

    `years` holds each prompt's YY and `numbers` the token of each two-digit number from 00 to 99; the probabilities
    are those among all tokens (Hanna 2023, arXiv 2305.00586).
    """
    p = torch.cat([model.logits(batch)[:, -1].float().softmax(-1).cpu() for batch in prompts.split(_BATCH)])
    later = torch.arange(len(numbers)) > years[:, None]
    return float((p[:, numbers] * torch.where(later, 1.0, -1.0)).sum(1).mean())


def _losses(
    model: LanguageModel, tokens: Int[Tensor, "sequence position"]
) -> Float[Tensor, "sequence prediction"]:
    # nothing is predicted from the last token, for which a model may have no position
    logits = model.logits(tokens[:, :-1]).float()
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:].to(logits.device), reduction="none").cpu()


def language_model_rows(
    model: LanguageModel, tokens: Tokens, documents: pa.Table, tokenizer: Tokenizer, seed: int
) -> list[dict[str, Any]]:
    """Rows of table `language_model` over held-out `tokens`.

    `documents` are the rows of table `document` for the same split: where a grammar wrote them (chronicle), the
    distance from the grammar is measured on those that fit the context, and greater-than on prompts drawn from `seed`.
    """
    loss = cross_entropy(model, tokens)
    rows = [
        _row("cross_entropy", loss.masked, "nats a token", "on packed held-out text, predictions from a BOS left out"),
        _row("cross_entropy_every", loss.every, "nats a token", "on packed held-out text, every prediction"),
        _row("n_tokens", loss.n_tokens, "tokens", "predictions in cross_entropy_every"),
        _row("parameters", sum(p.numel() for p in model.module.parameters()), "numbers", "trainable parameters"),
    ]  # fmt: skip
    written = _written(documents, tokenizer, tokens.context)
    if tokens.bos_id is None or not written[0]:
        return rows
    rows += _grammar_rows(grammar_distance(model, *written, tokens.bos_id))
    difference = _greater_than(model, tokenizer, tokens.bos_id, seed)
    if difference is not None:
        meaning = "P(later year) - P(same or earlier year), mean over start years 02 to 98"
        rows.append(_row("greater_than", difference, "probability", meaning))
    return rows


def _grammar_rows(distance: GrammarDistance) -> list[dict[str, Any]]:
    where = "whole held-out documents, each from its own BOS to the closing one"
    return [
        _row("document_cross_entropy", distance.cross_entropy, "nats a token", f"on {where}"),
        _row("grammar_entropy", distance.entropy, "nats a token", "-log p of the grammar on the same documents"),
        _row("grammar_distance", distance.percent, "percent", "document_cross_entropy above grammar_entropy"),
        _row("grammar_distance_error", distance.percent_error, "percent", "standard error of grammar_distance"),
        _row("n_documents", distance.n_documents, "documents", "whole documents measured"),
    ]  # fmt: skip


def _row(figure: str, value: float, unit: str, meaning: str) -> dict[str, Any]:
    return {"figure": figure, "value": float(value), "unit": unit, "meaning": meaning}


def _written(
    documents: pa.Table, tokenizer: Tokenizer, context: int
) -> tuple[list[Int[np.ndarray, " _token"]], Float[np.ndarray, " document"]]:
    """Held-out documents that a grammar wrote and that fit the context behind a BOS, and their log p."""
    held_out = documents.filter(pc.field("log_probability").is_valid() & (pc.field("n_tokens") < context))
    log_p = held_out["log_probability"].to_numpy()
    return tokenizer.encode(held_out["text"].to_pylist()), log_p


def _greater_than(model: LanguageModel, tokenizer: Tokenizer, bos_id: int, seed: int) -> float | None:
    """The probability difference; None where the tokenizer splits two-digit numbers."""
    numbers = tokenizer.encode([f"{year:02d}" for year in range(100)])
    probes = greater_than_prompts(seed)
    prompts = tokenizer.encode([probe.prompt for probe in probes])
    if any(len(number) != 1 for number in numbers) or len({len(prompt) for prompt in prompts}) != 1:
        return None
    ids = np.stack([np.concatenate([[bos_id], prompt]) for prompt in prompts])
    return greater_than(
        model,
        torch.from_numpy(ids.astype(np.int64)),
        torch.tensor([probe.start for probe in probes]),
        torch.tensor([int(number[0]) for number in numbers]),
    )
