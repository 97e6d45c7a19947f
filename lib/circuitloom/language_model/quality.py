"""How good a language model is: cross-entropy on held-out text, distance from the grammar, greater-than."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..corpus.tokens import Tokens, scored_positions
from ..progress import progress
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
