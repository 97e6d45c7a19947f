"""Computes losses and next-token probabilities from hidden states, one block of logits at a time.

With a vocabulary of 262,144 tokens, the logits of 1,024 positions take 1 GB. Reading and writing such a table takes as
long as the matrix product that makes it. Blocks stay in a processor's cache, and no table [token, vocabulary] is ever
complete.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from .hooks import Site, capture, edited
from .model import LanguageModel

CACHE_ELEMENTS = 2**21
"""Number of logits per block on a CPU. Blocks of this size fit into the cache."""
BLOCK_ELEMENTS = 2**26
"""Largest number of logits per block, 256 MB in float32. A GPU needs blocks of this size to be busy."""
ROWS = 1024
"""Largest number of positions per block on a CPU. With fewer, reading the unembedding takes longer than multiplying by
it."""
CHECKED = 4
"""Number of tokens on which `find_lm_head` compares logits."""


Logits = Callable[[Float[Tensor, "row d"], slice], Float[Tensor, "row token"]]
"""Function that returns the logits of some tokens for the unembedding's input."""


@dataclass(frozen=True)
class LMHead:
    """The part of a model after its last norm: from the unembedding's input to logits."""

    logits: Logits
    vocabulary: int
    """Number of logits per position."""
    divisible: bool = True
    """Whether `logits` computes the logits of some tokens without those of the others."""

    def row_blocks(self, n: int, device: torch.device) -> Iterator[slice]:
        """Yields slices of `n` positions, whose logits are computed together."""
        rows = ROWS if device.type == "cpu" else 8 * ROWS
        if not self.divisible:
            rows = min(rows, max(1, BLOCK_ELEMENTS // self.vocabulary))
        return (slice(start, min(start + rows, n)) for start in range(0, n, rows))

    def token_blocks(self, rows: int, device: torch.device) -> Iterator[slice]:
        """Yields slices of the vocabulary. The logits of `rows` positions fit into one block."""
        elements = CACHE_ELEMENTS if device.type == "cpu" else BLOCK_ELEMENTS
        size = max(1, elements // max(rows, 1)) if self.divisible else self.vocabulary
        return (slice(start, min(start + size, self.vocabulary)) for start in range(0, self.vocabulary, size))

    @torch.no_grad()
    def losses(self, hidden: Float[Tensor, "row d"], token: Int[Tensor, " row"]) -> Float64[Tensor, " row"]:
        """Returns -log p(token) of each position, in nats."""
        parts = []
        for rows in self.row_blocks(len(hidden), hidden.device):
            scores = NextTokenScores(token[rows])
            for tokens in self.token_blocks(len(token[rows]), hidden.device):
                scores.add(self.logits(hidden[rows], tokens).float(), tokens)
            parts.append(scores.loss)
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def probabilities(self, hidden: Float[Tensor, " d"]) -> Float[Tensor, " vocabulary"]:
        """Returns the next-token probabilities at one position, in the model's number format."""
        return self.logits(hidden[None], slice(0, self.vocabulary))[0].softmax(-1)

    @torch.no_grad()
    def most_likely(
        self, hidden: Float[Tensor, "row d"], n: int
    ) -> tuple[Float[Tensor, "row n"], Int[Tensor, "row n"]]:
        """Returns the probabilities and the ids of the `n` most likely next tokens at each position, best first."""
        size = max(1, BLOCK_ELEMENTS // 4 // self.vocabulary)
        found = [
            self.logits(rows, slice(0, self.vocabulary)).softmax(-1).topk(min(n, self.vocabulary))
            for rows in hidden.split(size)
        ]
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


class NextTokenScores:
    """Log-sum-exp over the vocabulary, and the logit of one token, at each position. Logits are added in blocks.

    Source: online normalizer of Milakov and Gimelshein 2018 (arXiv 1805.02867). Sums over a block are in the logits'
    number format, and sums over blocks in float64.
    """

    def __init__(self, token: Int[Tensor, " row"]) -> None:
        self.token = token
        # finite, so that a block in which all logits are -inf gives weights of 0
        self.largest = torch.full(token.shape, torch.finfo(torch.float32).min, device=token.device)
        """Largest logit so far."""
        self.total = torch.zeros(token.shape, dtype=torch.float64, device=token.device)
        """Sum of exp(logit - `largest`) so far."""
        self.chosen = torch.zeros_like(self.total)
        """Logit of `token`."""

    def add(
        self, logits: Float[Tensor, "row token"], tokens: slice
    ) -> tuple[Float[Tensor, "row token"], Float64[Tensor, " row"]]:
        """Add the logits of `tokens`, which are overwritten. Returns exp(logits - `largest`), and the factor that
        `largest` changes earlier weights by."""
        place = self.token - tokens.start
        own = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.chosen = torch.where((place >= 0) & (place < logits.shape[1]), own.double(), self.chosen)
        largest = torch.maximum(self.largest, logits.amax(1))
        factor = (self.largest.double() - largest).exp()
        weights = logits.sub_(largest[:, None]).exp_()
        self.total = self.total * factor + weights.sum(1)
        self.largest = largest
        return weights, factor

    @property
    def log_sum(self) -> Float64[Tensor, " row"]:
        """Log-sum-exp of the logits."""
        return self.largest + self.total.log()

    @property
    def loss(self) -> Float64[Tensor, " row"]:
        """-log p(token), in nats."""
        return self.log_sum - self.chosen


@torch.inference_mode()
def find_lm_head(model: LanguageModel) -> LMHead:
    """Returns the head of `model`, after a check that it gives the model's logits on a few tokens.

    Models that change logits after the unembedding run their own code on all tokens of the vocabulary at once. Raises
    ValueError if logits depend on more than the unembedding's input.
    """
    embedding = model.module.get_submodule(model.anatomy.embedding)
    token = torch.linspace(0, len(next(embedding.parameters())) - 1, CHECKED).long()[None]
    logits, [hidden] = model.logits(token)[0], capture(model, token, [Site("unembedding_in")]).values()
    for head in (
        LMHead(model.unembed, model.vocabulary, divisible=type(model.unembedding) is nn.Linear),
        LMHead(lambda hidden, tokens: own_logits(model, hidden)[:, tokens], logits.shape[1], divisible=False),
    ):
        found = head.logits(hidden[0], slice(0, head.vocabulary))
        if found.shape == logits.shape and torch.allclose(
            found, logits, rtol=1e-4, atol=1e-4, equal_nan=True
        ):
            return head
    raise ValueError(
        f"{model.anatomy.architecture}: its logits depend on more than its last hidden state; choose another model"
    )


def own_logits(model: LanguageModel, hidden: Float[Tensor, "row d"]) -> Float[Tensor, "row vocabulary"]:
    """Returns the logits that the model's own code computes from `hidden`, the unembedding's input."""
    # the pass of one token before the unembedding takes no time compared with the logits
    with edited(model, {Site("unembedding_in"): lambda _x, _y: hidden[None]}):
        return model.logits(torch.zeros(1, 1, dtype=torch.int64))[0]
