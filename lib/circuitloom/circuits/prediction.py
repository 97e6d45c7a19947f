"""Predictions of the blind protocol: which tokens a feature fires on, from what never shows a text.

`restricted` knows the weights: the score of a token is what its embedding adds to the feature's pre-activation,
directly and through what layer 0's dictionary makes of it. `plain` also knows, of some contexts in which the feature
fires, how much each layer-0 feature, by its number, adds to it there, and by which vectors it reads embeddings through
patterns of heads and denominators of norms as they are there. The score is mean vector times embedding, plus the sum
over layer-0 features of mean contribution times the token's activation by itself, a share of the largest of any token.
In layer 0 itself no feature is in between, and the first part is all.

Predicted is every token whose score, mean over the vocabulary taken off, exceeds half the largest. `restricted` says
`here`: weights do not tell where attention looks. `plain` says `previous` where the token before the one at which the
feature fires contributes more than that one does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attribution import Targets, reading_targets
from .deembedding import BareTokens, stream_reads
from .frozen import Weights
from .local_model import LocalModel

PLACES = ("here", "previous")
"""Where predicted tokens stand: so many tokens, 0 or 1, before the one at which the feature fires."""


@dataclass(frozen=True)
class Firing:
    """Where some features of a layer fire, by feature and then in the order of the text."""

    sequence: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]

    def of(self, features: Int[Tensor, " some"]) -> "Firing":
        """The entries of some features."""
        return self.take(torch.isin(self.feature, features))

    def take(self, which: Tensor) -> "Firing":
        """Some entries."""
        return Firing(*(column[which] for column in vars(self).values()))

    def spread(self, n: int) -> "Firing":
        """Of each feature `n` entries, evenly spaced over the text, or all where they are few."""
        _, group, counts = torch.unique_consecutive(self.feature, return_inverse=True, return_counts=True)
        place = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group]
        many = counts[group]
        middle = (2 * (place * n // many) + 1) * many // (2 * n)
        return self.take((many <= n) | (place == middle))


@dataclass(frozen=True)
class Evidence:
    """What is known of some features of a layer from contexts in which they fire; means over the contexts."""

    read: Float[Tensor, "feature place d"]
    """By which vectors they read embeddings at each of `PLACES`."""
    contribution: Float[Tensor, "feature place first"]
    """What each layer-0 feature there adds to them."""
    total: Float[Tensor, "feature place"]
    """What embeddings and layer-0 features there add, together."""


@dataclass(frozen=True)
class Prediction:
    """Which tokens each of some features is said to fire on."""

    score: Float[Tensor, "feature token"]
    place: Int[Tensor, " feature"]
    """Number of one of `PLACES`."""

    @property
    def token(self) -> Bool[Tensor, "feature token"]:
        """Those that are predicted: score above its mean by more than half of what the largest is."""
        above = self.score - self.score.mean(1, keepdim=True)
        return above > above.amax(1, keepdim=True) / 2


def predict_restricted(
    weights: Weights, layer: int, rows: Float[Tensor, "feature d"], tokens: BareTokens
) -> Prediction:
    """From encoder rows of a layer and what tokens bring into the stream by themselves."""
    written = tokens.embedding
    if layer > 0 and tokens.layer0 is not None:
        written = written + tokens.layer0
    score = stream_reads(weights, layer, rows) @ written.T
    return Prediction(score, torch.zeros(len(score), dtype=torch.int64, device=score.device))


def predict_plain(evidence: Evidence, tokens: BareTokens) -> Prediction:
    """From what is known of contexts."""
    place = evidence.total.argmax(1)
    feature = torch.arange(len(place), device=place.device)
    score = evidence.read[feature, place] @ tokens.embedding.T
    if tokens.code is not None:
        # a feature that fires on no token by itself names none
        largest = tokens.code.largest
        share = torch.where(largest > 0, evidence.contribution[feature, place] / largest, 0.0)
        score = score + tokens.code.weigh(share.T.contiguous()).T
    return Prediction(score, place)


@torch.inference_mode()
def gather_evidence(
    prompts: Iterable[tuple[int, LocalModel]], contexts: Mapping[int, Firing]
) -> dict[int, Evidence]:
    """What contexts, by layer, tell of their features, by ascending number; none of a layer without contexts.

    Prompts come with the numbers of their sequences, once each.
    """
    sums: dict[int, _Sums] = {}
    for number, prompt in prompts:
        for layer, every in contexts.items():
            mine = every.take(every.sequence == number)
            if len(mine.feature):
                if layer not in sums:
                    sums[layer] = _Sums(every.feature, prompt)
                dictionary = prompt.dictionaries[layer]
                feature = mine.feature.to(dictionary.W_enc.device)
                position = mine.position.to(feature.device)
                rows, bias = dictionary.W_enc[feature], dictionary.b_enc[feature]
                targets = reading_targets(prompt, layer, position, rows, bias)
                sums[layer].add(prompt, targets, feature)
    return {layer: each.means() for layer, each in sums.items()}


class _Sums:
    """Sums over contexts."""

    def __init__(self, feature: Int[Tensor, " entry"], prompt: LocalModel) -> None:
        like = prompt.frozen.resid_final
        self.feature, n = (each.to(like.device) for each in feature.unique(return_counts=True))
        self.n = n[:, None]
        first = prompt.dictionaries[0].width if 0 in prompt.dictionaries else 0
        self.read = like.new_zeros(len(n), len(PLACES), like.shape[1])
        self.contribution = like.new_zeros(len(n), len(PLACES), first)
        self.total = like.new_zeros(len(n), len(PLACES))

    def means(self) -> Evidence:
        n = self.n[:, :, None]
        return Evidence(self.read / n, self.contribution / n, self.total / self.n)

    def add(self, prompt: LocalModel, targets: Targets, feature: Int[Tensor, " target"]) -> None:
        row = torch.searchsorted(self.feature, feature)
        done = 0
        for chunk in targets.chunks(prompt.frozen.resid_final.numel()):
            mine = row[done : done + len(chunk)]
            done += len(chunk)
            for part, layer, g in prompt.descend(chunk.vector, chunk.position, chunk.layer):
                for place in range(len(PLACES)):
                    # position 0 never counts, so that there is one before
                    at = chunk.position - place
                    reads = g[at, torch.arange(len(at), device=at.device)]
                    if part == "start":
                        self.read[:, place].index_add_(0, mine, reads)
                        embedded = (reads * prompt.frozen.embedding[at]).sum(-1)
                        self.total[:, place].index_add_(0, mine, embedded)
                    elif part == "mlp" and layer == 0 and self.contribution.shape[2]:
                        self._add_features(prompt, mine, place, at, reads)

    def _add_features(
        self,
        prompt: LocalModel,
        row: Int[Tensor, " target"],
        place: int,
        at: Int[Tensor, " target"],
        reads: Float[Tensor, "target d"],
    ) -> None:
        for number, position, read in zip(row.tolist(), at.tolist(), reads, strict=True):
            active = prompt.active(0, position)
            effect = prompt.decoder_rows(0, active) @ read
            self.contribution[number, place].index_add_(0, prompt.features.feature[active], effect)
            self.total[number, place] += effect.sum()
