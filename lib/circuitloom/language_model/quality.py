"""Measures held-out cross-entropy, its excess over the entropy of the grammar, the greater-than metric of chronicle,
and the accuracy on facts of guilds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.progress import announce, progress
from ..corpus.chronicle.grammar import greater_than_prompts
from ..corpus.guilds import HABITS, VERBS, GuildQuestion, frequent_answer, questions
from ..corpus.token_arrays import count_sequences, scored_positions
from ..corpus.tokenizer import Tokenizer
from ..corpus.tokens import Tokens
from .batches import sequences_per_pass
from .hooks import Site, capture, edited
from .lm_head import LMHead, find_lm_head
from .model import LanguageModel

QUESTIONS = 4
"""Number of questions about each fact of guilds, with different persons."""


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of next-token predictions, in nats per token."""

    masked: float
    """Mean over predictions from scored positions, which exclude position 0 and every separator."""
    every: float
    """Mean over all predictions."""
    n_tokens: int
    """Number of predictions in `every`."""


@dataclass(frozen=True)
class GrammarDistance:
    """Cross-entropy of the model and entropy of the grammar, in nats per predicted token."""

    cross_entropy: float
    entropy: float
    """-log p of the documents under the grammar, per predicted token."""
    standard_error: float
    """Standard error of `cross_entropy` - `entropy`. Documents are assumed to be independent."""
    n_documents: int

    @property
    def percent(self) -> float:
        """Excess of the cross-entropy over the entropy, in percent of the entropy."""
        return 100 * (self.cross_entropy / self.entropy - 1)

    @property
    def percent_error(self) -> float:
        """Standard error of `percent`."""
        return 100 * self.standard_error / self.entropy


@torch.no_grad()
def cross_entropy(model: LanguageModel, tokens: Tokens, n_tokens: int | None = None) -> CrossEntropy:
    """Returns the cross-entropy of the model on packed held-out sequences.

    With `n_tokens`, only the complete sequences in the first `n_tokens` tokens are used.
    """
    head, size = find_lm_head(model), sequences_per_pass(model, "auto", tokens.context)
    masked = every = 0.0
    n_masked = n_every = 0
    sequences = count_sequences(tokens, n_tokens)
    with progress("language_model: held-out text", sequences, "sequences") as bar:
        for start in range(0, sequences, size):
            batch = tokens.take(slice(start, min(start + size, sequences)))
            loss = _losses(model, head, batch)
            scored = scored_positions(batch, tokens.separator_id)[:, :-1]
            masked, n_masked = masked + float(loss[scored].sum()), n_masked + int(scored.sum())
            every, n_every = every + float(loss.sum()), n_every + loss.numel()
            bar.update(len(batch))
    return CrossEntropy(masked / max(n_masked, 1), every / n_every, n_every)


@torch.no_grad()
def document_losses(
    model: LanguageModel, documents: Sequence[Int[np.ndarray, " _token"]]
) -> Float[np.ndarray, " document"]:
    """Returns the cross-entropy of each document in nats, summed over all tokens after the first."""
    total, head = np.empty(len(documents)), find_lm_head(model)
    size = sequences_per_pass(model, "auto", max(map(len, documents), default=1))
    # sorted by length, so that batches need little padding
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    with progress("language_model: documents", len(documents), "documents") as bar:
        for start in range(0, len(order), size):
            group = order[start : start + size]
            lengths = torch.tensor([len(documents[i]) for i in group])
            batch = torch.zeros(len(group), int(lengths.max()), dtype=torch.int64)
            for row, i in enumerate(group):
                batch[row, : len(documents[i])] = torch.from_numpy(documents[i].astype(np.int64))
            inside = torch.arange(1, batch.shape[1]) < lengths[:, None]
            total[group] = (_losses(model, head, batch) * inside).sum(1).numpy()
            bar.update(len(group))
    return total


def grammar_distance(
    model: LanguageModel,
    documents: Sequence[Int[np.ndarray, " _token"]],
    log_probability: Float[np.ndarray, " document"],
    bos_id: int,
) -> GrammarDistance:
    """Compare the model with the grammar on complete documents. Each document is put between two BOS.

    `log_probability` is the log probability of each document and its end under the grammar, in nats.
    """
    complete = [np.concatenate([[bos_id], document, [bos_id]]) for document in documents]
    predicted = np.array([len(document) - 1 for document in complete], np.float64)
    loss = document_losses(model, complete).astype(np.float64)
    excess = loss + log_probability
    # the standard error of a ratio of means
    residual = excess - predicted * excess.sum() / predicted.sum()
    error = (
        residual.std(ddof=1) * math.sqrt(len(complete)) / predicted.sum() if len(complete) > 1 else math.nan
    )
    n = predicted.sum()
    return GrammarDistance(loss.sum() / n, -log_probability.sum() / n, error, len(complete))


@torch.no_grad()
def greater_than(
    model: LanguageModel,
    prompts: Int[Tensor, "prompt position"],
    years: Int[Tensor, " prompt"],
    numbers: Int[Tensor, " number"],
) -> float:
    """Returns P(y > YY) - P(y <= YY) for the next two-digit number y, averaged over prompts (Hanna et al. 2023).

    `years` contains the YY of each prompt. `numbers` contains the token ids of 00 to 99. The probabilities of these
    numbers are not renormalized to sum to 1.
    """
    size = sequences_per_pass(model, "auto", prompts.shape[1])
    with edited(model, {Site("unembedding_in"): lambda _x, y: y[:, -1:]}):
        p = torch.cat(
            [
                model.logits(batch)[:, -1].float().softmax(-1)[:, numbers].cpu()
                for batch in prompts.split(size)
            ]
        )
    later = torch.arange(len(numbers)) > years[:, None]
    return float((p * torch.where(later, 1.0, -1.0)).sum(1).mean())


def _losses(
    model: LanguageModel, head: LMHead, tokens: Int[Tensor, "sequence position"]
) -> Float[Tensor, "sequence prediction"]:
    # the last token is left out: it predicts nothing and may exceed the model's context
    [hidden] = capture(model, tokens[:, :-1], [Site("unembedding_in")]).values()
    loss = head.losses(hidden.flatten(0, 1), tokens[:, 1:].to(hidden.device).flatten()).float().cpu()
    model.check_finite(loss, "the model's loss on held-out text")
    return loss.view(len(tokens), -1)


def language_model_rows(
    model: LanguageModel,
    tokens: Tokens,
    documents: pa.Table,
    tokenizer: Tokenizer,
    seed: int,
    n_tokens: int | None = None,
    source: str = "chronicle",
) -> list[dict[str, Any]]:
    """Returns the rows of table `language_model`, measured on the held-out `tokens`.

    Raises ValueError if the loss is not finite, as where logits overflow float16.

    `documents` is table `document` of the same split. If a grammar generated the documents, the rows include the
    grammar distance, and the greater-than metric or the accuracy on facts, whichever the grammar `source` (the key
    `corpus.source`) has. `seed` determines the prompts of both. With `n_tokens`, the
    cross-entropy is that of the first sequences with this number of tokens.
    """
    loss = cross_entropy(model, tokens, n_tokens)
    guess = math.log(model.vocabulary)
    if loss.masked > guess + 0.01:
        announce(
            "language_model",
            f"a cross-entropy of {loss.masked:.2f} nats per token on held-out text is worse than guessing "
            f"({guess:.2f}); is the tokenizer the model's own, and are the weights complete?",
        )
    rows = [
        _row("cross_entropy", loss.masked, "nats per token", "on packed held-out text, from scored positions"),
        _row("cross_entropy_every", loss.every, "nats per token", "on packed held-out text, all predictions"),
        _row("n_tokens", loss.n_tokens, "tokens", "predictions in cross_entropy_every"),
        _row("parameters", sum(p.numel() for p in model.module.parameters()), "numbers", "trainable parameters"),
    ]  # fmt: skip
    generated = _generated_documents(documents, tokenizer, tokens.context)
    if tokens.bos_id is None or not generated[0]:
        return rows
    rows += _grammar_rows(grammar_distance(model, *generated, tokens.bos_id))
    if source == "guilds":
        return rows + _fact_rows(model, tokenizer, tokens.bos_id, seed)
    difference = _greater_than(model, tokenizer, tokens.bos_id, seed)
    if difference is not None:
        meaning = "P(later year) - P(same or earlier year), mean over start years 02 to 98"
        rows.append(_row("greater_than", difference, "probability", meaning))
    return rows


def _grammar_rows(distance: GrammarDistance) -> list[dict[str, Any]]:
    where = "complete held-out documents, each between two BOS"
    return [
        _row("document_cross_entropy", distance.cross_entropy, "nats per token", f"on {where}"),
        _row("grammar_entropy", distance.entropy, "nats per token", "-log p of the grammar on the same documents"),
        _row("grammar_distance", distance.percent, "percent", "document_cross_entropy above grammar_entropy"),
        _row("grammar_distance_error", distance.percent_error, "percent", "standard error of grammar_distance"),
        _row("n_documents", distance.n_documents, "documents", "documents measured"),
    ]  # fmt: skip


def _row(figure: str, value: float, unit: str, meaning: str) -> dict[str, Any]:
    return {"figure": figure, "value": float(value), "unit": unit, "meaning": meaning}


def _generated_documents(
    documents: pa.Table, tokenizer: Tokenizer, context: int
) -> tuple[list[Int[np.ndarray, " _token"]], Float[np.ndarray, " document"]]:
    """Returns tokens (without BOS) and log probabilities of the generated documents that fit the context with a BOS."""
    held_out = documents.filter(pc.field("log_probability").is_valid() & (pc.field("n_tokens") < context))
    log_p = held_out["log_probability"].to_numpy()
    return tokenizer.encode(held_out["text"].to_pylist()), log_p


def _greater_than(model: LanguageModel, tokenizer: Tokenizer, bos_id: int, seed: int) -> float | None:
    """Returns the greater-than metric. Returns None if a number is several tokens, or if prompt lengths differ."""
    numbers = tokenizer.encode([f"{year:02d}" for year in range(100)])
    questions = greater_than_prompts(seed)
    prompts = tokenizer.encode([question.prompt for question in questions])
    if any(len(number) != 1 for number in numbers) or len({len(prompt) for prompt in prompts}) != 1:
        return None
    ids = np.stack([np.concatenate([[bos_id], prompt]) for prompt in prompts])
    return greater_than(
        model,
        torch.from_numpy(ids.astype(np.int64)),
        torch.tensor([question.start for question in questions]),
        torch.tensor([int(number[0]) for number in numbers]),
    )


def _fact_rows(model: LanguageModel, tokenizer: Tokenizer, bos_id: int, seed: int) -> list[dict[str, Any]]:
    """Returns the accuracy on facts of guilds: those that the text has, and those that are held out of it. No rows if a
    word is several tokens."""
    if any(
        len(tokens) != 1 for tokens in tokenizer.encode([word for each in HABITS.values() for word in each])
    ):
        return []
    rows, where = [], "share of right answers among the four of the verb, to questions about facts that"
    for name, held_out, what in (
        ("accuracy_told", False, "the text has"),
        ("accuracy_held_out", True, "are held out"),
    ):
        asked = questions(seed, held_out, QUESTIONS)
        right = float(np.mean(answered(model, tokenizer, bos_id, asked)))
        rows.append(_row(name, right, "fraction", f"{where} {what}"))
        guess = float(np.mean([frequent_answer(each.fact.verb) == each.fact.answer for each in asked]))
        rows.append(
            _row(f"{name}_guess", guess, "fraction", "the same if the verb's most frequent answer is given")
        )
    return rows


@torch.no_grad()
def answered(
    model: LanguageModel, tokenizer: Tokenizer, bos_id: int, asked: Sequence[GuildQuestion]
) -> list[bool]:
    """Returns for each question of guilds whether its answer has the largest logit among the answers of its verb.

    All answers must be single tokens, and all questions must have the same number of tokens.
    """
    ids = np.stack(
        [np.concatenate([[bos_id], prompt]) for prompt in tokenizer.encode([each.text for each in asked])]
    )
    prompts = torch.from_numpy(ids.astype(np.int64))
    size = sequences_per_pass(model, "auto", prompts.shape[1])
    with edited(model, {Site("unembedding_in"): lambda _x, y: y[:, -1:]}):
        logits = torch.cat([model.logits(batch)[:, -1].float().cpu() for batch in prompts.split(size)])
    tokens = [[int(each[0]) for each in tokenizer.encode(list(HABITS[verb]))] for verb in VERBS]
    return [
        HABITS[VERBS[fact.verb]][int(row[tokens[fact.verb]].argmax())] == fact.answer
        for (fact, *_), row in zip(asked, logits, strict=True)
    ]
