"""The rows of table `language_model`: the figures that apply to a model and the text it is studied on."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int

from ..corpus.chronicle.probes import greater_than_prompts
from ..corpus.tokenizer import Tokenizer
from ..corpus.tokens import Tokens
from .model import LanguageModel
from .quality import GrammarDistance, cross_entropy, grammar_distance, greater_than


def figures(
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
