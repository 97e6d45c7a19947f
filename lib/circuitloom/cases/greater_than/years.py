"""Features year by year: how strongly they fire, which years they promote, which their weights say they read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...attribution.capture import ModelWeights
from ...dictionaries.dictionary import Dictionary
from ...language_model.hooks import Site, capture
from ...language_model.model import LanguageModel
from ...weights.deembedding import embedding_rows, encoder_in_residual, head_layers, head_vjp, norm_jvp
from .passes import HeadShifts
from .prompts import Answers, YearPrompts


@dataclass(frozen=True)
class FeatureYears:
    """Some features of a layer, by start year."""

    year: Int[Tensor, " year"]
    """Start years, ascending."""
    feature: Int[Tensor, " feature"]
    activation: Float[Tensor, "feature year"]
    """At the last token, the mean over the prompts of the year."""
    attribution: Float[Tensor, "feature year"]
    """Direct effect of an activation of 1 on the year's logit, the mean over the vocabulary taken off; the final
    norm's denominator left out."""
    head: tuple[int, int] | None
    """Layer and number of the head that the score goes through: of those before the layer's MLP, the one that carries
    the year most."""
    score: Float[Tensor, "feature year"] | None
    """De-embedding score: how far the weights say the year is read; None where no head lies before the layer."""


def describe_years(
    model: LanguageModel,
    weights: ModelWeights,
    transcoders: Mapping[int, Dictionary],
    layer: int,
    prompts: YearPrompts,
    answers: Answers,
    feature: Int[Tensor, " feature"],
    head: tuple[int, int] | None,
    connections: int,
) -> FeatureYears:
    """Some features of a layer, year by year; `head` is what their de-embedding goes through."""
    year, row = prompts.start.unique(return_inverse=True)
    z = activations(model, transcoders[layer], prompts, feature).cpu()
    total = z.new_zeros(len(year), len(feature)).index_add_(0, row, z)
    token = answers.token[torch.isin(answers.year, year)].to(feature.device)
    score = None
    if head is not None:
        score = deembedding_scores(
            model, weights, transcoders, layer, feature, head, token, connections
        ).cpu()
    attribution = logit_attribution(weights, transcoders[layer], feature, token).cpu()
    return FeatureYears(
        year, feature.cpu(), (total / torch.bincount(row)[:, None]).T, attribution, head, score
    )


@torch.inference_mode()
def activations(
    model: LanguageModel, dictionary: Dictionary, prompts: YearPrompts, feature: Int[Tensor, " feature"]
) -> Float[Tensor, "prompt feature"]:
    """Activations at the last token."""
    site = Site("mlp_in", dictionary.layer)
    x = capture(model, prompts.token, [site])[site][:, -1]
    return dictionary.encode(x.to(dictionary.W_enc.dtype))[:, feature]


@torch.inference_mode()
def direct_effects(
    model: LanguageModel,
    weights: ModelWeights,
    dictionary: Dictionary,
    prompts: YearPrompts,
    answers: Answers,
    feature: Int[Tensor, " feature"],
) -> Float[Tensor, " prompt"]:
    """What features add, together and directly, to the mean logit of later years less that of the other years.

    The final norm's denominator is left out.
    """
    z = activations(model, dictionary, prompts, feature)
    effect = (z @ logit_attribution(weights, dictionary, feature, answers.token.to(feature.device))).cpu()
    later = (answers.year > prompts.start[:, None]).to(effect)
    return (effect * later).sum(1) / later.sum(1) - (effect * (1 - later)).sum(1) / (1 - later).sum(1)


@torch.inference_mode()
def logit_attribution(
    weights: ModelWeights,
    dictionary: Dictionary,
    feature: Int[Tensor, " feature"],
    token: Int[Tensor, " year"],
) -> Float[Tensor, "feature year"]:
    """What an activation of 1 adds to the logits of tokens directly, denominators left out."""
    rows = weights.unembedding.rows[token]
    written = norm_jvp(weights.blocks[dictionary.layer].norm_mlp_after, dictionary.W_dec[feature].to(rows))
    return written @ rows.T


def carrying_head(model: LanguageModel, shifts: HeadShifts, layer: int) -> tuple[int, int] | None:
    """Of the heads that the MLP of `layer` reads, the one that carries the year most; None where it reads none."""
    before = head_layers(model, -1, layer)
    order = [i for i in shifts.order().tolist() if int(shifts.layer[i]) in before]
    return (int(shifts.layer[order[0]]), int(shifts.head[order[0]])) if order else None


@torch.inference_mode()
def deembedding_scores(
    model: LanguageModel,
    weights: ModelWeights,
    transcoders: Mapping[int, Dictionary],
    layer: int,
    feature: Int[Tensor, " feature"],
    head: tuple[int, int],
    token: Int[Tensor, " year"],
    connections: int,
) -> Float[Tensor, "feature year"]:
    """How far each feature reads each token through a head, by the weights alone.

    Through the features of layer 0, where it has a transcoder and the head lies behind it: the sum over the so many
    largest connections c_i of c_i times what feature i reads in the token's embedding. Else what the head itself
    reads there.
    """
    embedding = embedding_rows(model, weights)[token]
    reads = encoder_in_residual(weights, layer, transcoders[layer].W_enc[feature])
    read = head_vjp(weights.blocks[head[0]], head[1], reads)
    first = transcoders.get(0)
    if first is None or head[0] not in head_layers(model, 0, layer):
        return read @ embedding.T
    written = norm_jvp(weights.blocks[0].norm_mlp_after, first.W_dec.to(read))
    best = (read @ written.T).topk(min(connections, first.width), dim=1)
    tokens = encoder_in_residual(weights, 0, first.W_enc) @ embedding.T
    return torch.einsum("fc,fcy->fy", best.values, tokens[best.indices])
