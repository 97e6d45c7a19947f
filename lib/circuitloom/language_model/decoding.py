"""Next-token logits of a text that grows token by token, with the model's key-value cache."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from .hooks import Site, edited
from .model import LanguageModel

TOLERANCES = {"float64": 1e-3, "float32": 1e-3}
"""Largest difference of a next-token probability between a pass with the cache and one without, by number format."""
TOLERANCE = 5e-2
"""The same for other number formats."""


class GrowingText:
    """A text to which tokens are appended. Only the new tokens run through the model, unless its cache does not work.

    Edits of `hooks.edited` apply in each pass. A pass has one sequence, and its first position is `start`. The first
    pass with a cache is compared with a pass over the complete text, both with the edits. If their probabilities
    differ, or if the model has no cache, `cached` becomes False, and each pass is over the complete text.

    >>> text = GrowingText(model)
    >>> logits = text.append(prompt)
    >>> logits = text.append([int(logits.argmax())])
    """

    def __init__(self, model: LanguageModel, cached: bool = True) -> None:
        """With `cached` False, the cache is not used."""
        self.model = model
        self.token: list[int] = []
        self.start = 0
        """Number of tokens of the text before the first position of the running pass."""
        self.cached = cached and "past_key_values" in inspect.signature(model.module.forward).parameters
        self._cache = None
        self._checked = False

    @torch.inference_mode()
    def append(self, token: Sequence[int]) -> Float[Tensor, " vocabulary"]:
        """Append tokens, at least one. Returns the next-token logits after the last one, in float32 or float64."""
        before = len(self.token)
        self.token.extend(token)
        if not self.cached:
            return self._run_all()
        logits = self._run(before)
        if before and not self._checked:
            self._checked = True
            whole = self._run_all()
            tolerance = TOLERANCES.get(self.model.dtype, TOLERANCE)
            # a comparison with nan is False, and the caller reports it
            if ((logits.softmax(-1) - whole.softmax(-1)).abs() > tolerance).any():
                self.cached, self._cache = False, None
                return whole
        return logits

    def _run_all(self) -> Float[Tensor, " vocabulary"]:
        """Run the complete text without the cache."""
        self.start = 0
        return self._logits(self.token, {})

    def _run(self, start: int) -> Float[Tensor, " vocabulary"]:
        """Run the tokens from `start` on with the cache."""
        self.start = start
        return self._logits(self.token[start:], {"use_cache": True, "past_key_values": self._cache})

    def _logits(self, token: list[int], options: dict) -> Float[Tensor, " vocabulary"]:
        with ExitStack() as stack:
            if len(token) > 1:
                # no logits of earlier positions
                stack.enter_context(edited(self.model, {Site("unembedding_in"): lambda _x, y: y[:, -1:]}))
            output = self.model.module(torch.tensor([token], device=self.model.device), **options)
        if options:
            self._cache = output.past_key_values
        logits = (output if isinstance(output, Tensor) else output.logits)[0, -1]
        return logits if logits.dtype == torch.float64 else logits.float()
