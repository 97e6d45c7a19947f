"""Checks that an imported dictionary fits the model at the hooks that its files name.

The dictionary is read on about 1,000 held-out tokens as its files say, and also at other hooks, with inputs and outputs
scaled, and with a transposed skip connection. If it does not fit as its files say, the message names what fits.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...config.activations import MLP_OUTPUTS
from ...config.hooks import BARE_NORM, HOOKS, RESID_POST
from ...config.published_layer import PublishedLayer
from ...corpus.token_arrays import scored_positions
from ...corpus.tokens import open_tokens
from ...language_model.hooks import Site, capture
from ...language_model.model import LanguageModel
from ..dictionary import Dictionary
from .folding import norm_before_mlp

TOKENS = 1024
"""Number of held-out tokens, before those that are not scored are left out."""
FACTOR = 4.0
"""Largest ratio of the measured L0 and the L0 that the files state."""
PLAUSIBLE = 0.3
"""With a smaller FVU, no other reading is tried."""
BETTER = 0.5
"""The files name wrong hooks if the FVU of another reading is less than this fraction of that of their own reading."""
HOOK_IN_BLOCK = {site: hook.partition("{layer}.")[2] for site, hook in HOOKS.items()}


@dataclass(frozen=True)
class HookReading:
    """One way to use a dictionary, and how well it fits."""

    hook_in: str
    hook_out: str
    scaled: bool
    """Whether inputs and outputs are scaled to a mean norm of √d."""
    transposed: bool
    """Whether the skip connection is transposed."""
    fvu: float
    """Fraction of variance unexplained of the output."""
    l0: float
    """Mean number of active features per token."""

    def __str__(self) -> str:
        """Returns the reading in words."""
        hooks = self.hook_in if self.hook_in == self.hook_out else f"{self.hook_in} to {self.hook_out}"
        parts = [hooks]
        parts += ["inputs and outputs scaled to a mean norm of √d"] if self.scaled else []
        parts += ["skip connection transposed"] if self.transposed else []
        return ", ".join(parts)


class FitCheck(ABC):
    """Readings of published weights on held-out tokens, and what they say about the hooks that the files name."""

    def __init__(
        self, layer: PublishedLayer, model: LanguageModel, validation: Path, largest_fvu: float
    ) -> None:
        """`validation` is the Zarr group of held-out tokens. `layer` describes the files."""
        self.layer, self.model = layer, model
        self.validation, self.largest_fvu = validation, largest_fvu

    @property
    @abstractmethod
    def where(self) -> str:
        """Names what is checked."""

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Number of tokens of a reading."""

    @property
    @abstractmethod
    def own(self) -> HookReading:
        """The reading that the files say."""

    @abstractmethod
    def others(self) -> Iterator[HookReading]:
        """Yields all other readings."""

    def verdict(self) -> str:
        """Returns one line about how well the dictionary fits.

        Raises ValueError if its FVU exceeds `largest_fvu`, if its L0 is far from the one that its files state, or if
        another reading fits much better. If `largest_fvu` is above 1, only FVU is compared.
        """
        own, where = self.own, self.where
        facts = f"FVU {own.fvu:.3g} on {self.n_tokens:,} held-out tokens, L0 {own.l0:.4g}"
        good = self._fits(own)
        if good and (own.fvu <= PLAUSIBLE or self.largest_fvu > 1):
            return f"{where}: {facts}"
        others = list(self.others())
        limit = BETTER * own.fvu if good else self.largest_fvu
        found = min((each for each in others if self._fits(each)), key=lambda each: each.fvu, default=None)
        if good and (found is None or found.fvu > limit):
            return f"{where}: {facts}"
        expected = f" (the files state {self.expected_l0:g})" if self.expected_l0 else ""
        if found is not None:
            advice = f"it fits with {found} (FVU {found.fvu:.3g}, L0 {found.l0:.4g}): correct a copy of its settings"
            if found.fvu > PLAUSIBLE:
                advice += ", or, as this is a poor fit, name the model that it was trained on"
        else:
            best = min(others, key=lambda each: each.fvu, default=own)
            advice = (
                f"none of {len(others)} other readings (other hooks, scaled, skip transposed) fits, the best is {best} "
                f"with FVU {best.fvu:.3g}: name the files of this model"
            )
        raise ValueError(
            f"{where} does not fit with {own}, as its files say: {facts}{expected}, FVU may be {self.largest_fvu:g}; "
            f"{advice}, or set largest_fvu above 1 to import them"
        )

    def _fits(self, reading: HookReading) -> bool:
        expected = self.expected_l0 if self.largest_fvu <= 1 else None
        near = expected is None or expected / FACTOR <= reading.l0 <= expected * FACTOR
        return reading.fvu <= self.largest_fvu and near

    @property
    def expected_l0(self) -> float | None:
        """L0 that the files state, or None."""
        return float(self.layer.k) if self.layer.k is not None else self.layer.l0


class HookCheck(FitCheck):
    """Readings of one dictionary."""

    def __init__(
        self,
        dictionary: Dictionary,
        layer: PublishedLayer,
        model: LanguageModel,
        validation: Path,
        largest_fvu: float,
    ) -> None:
        """The arguments after `dictionary` are those of `FitCheck`."""
        super().__init__(layer, model, validation, largest_fvu)
        self.dictionary = dictionary

    @property
    def where(self) -> str:
        """Names the file and the layer."""
        return f"{self.layer.weights}: layer {self.dictionary.layer}"

    @property
    def n_tokens(self) -> int:
        """Number of tokens of a reading."""
        return len(next(iter(self.values.values())))

    @property
    def own(self) -> HookReading:
        """The reading that the files say."""
        hook_in, hook_out = self._own_hooks
        (reading,) = self._read([hook_in], [hook_out], [False], [False])
        return reading

    def others(self) -> Iterator[HookReading]:
        """Yields all other readings."""
        outputs = [HOOK_IN_BLOCK[site] for site in MLP_OUTPUTS]
        # no transcoder reads what attention or the MLP adds
        added = {*outputs, HOOK_IN_BLOCK["attn_added"]}
        inputs = [hook for hook in self.values if self._is_sae or hook not in added]
        skip = self.dictionary.W_skip
        transposed = [False] + [True] * (skip is not None and skip.shape[0] == skip.shape[1])
        own = (*self._own_hooks, False, False)
        for reading in self._read(inputs, inputs if self._is_sae else outputs, [False, True], transposed):
            if (reading.hook_in, reading.hook_out, reading.scaled, reading.transposed) != own:
                yield reading

    @property
    def _is_sae(self) -> bool:
        return self.dictionary.is_sae

    @property
    def _own_hooks(self) -> tuple[str, str]:
        if self.layer.bare_norm:
            return BARE_NORM, BARE_NORM if self._is_sae else HOOK_IN_BLOCK[self.dictionary.site_out]
        return HOOK_IN_BLOCK[self.dictionary.site_in], HOOK_IN_BLOCK[self.dictionary.site_out]

    @cached_property
    def _gain_and_bias(self) -> tuple[Tensor, Tensor] | None:
        """Gain and bias of the norm before the MLP, or None if there is no such norm."""
        layer = self.dictionary.layer
        if self.model.norm(layer, self.model.anatomy.norm_mlp) is None:
            return None
        norm = norm_before_mlp(self.model, layer)
        # a gain of 0 has no inverse
        return (norm.gain.float().cpu(), norm.bias.float().cpu()) if bool(norm.gain.all()) else None

    @cached_property
    def values(self) -> dict[str, Float[Tensor, "token d"]]:
        """Values of all hooks on the scored held-out tokens, in float32 on the CPU."""
        values = hook_values(self.model, self.dictionary.layer, self.validation)
        if self._gain_and_bias is not None:
            gain, bias = self._gain_and_bias
            values[BARE_NORM] = (values[HOOK_IN_BLOCK["mlp_in"]] - bias) / gain
        return values

    @torch.inference_mode()
    def _read(
        self, inputs: list[str], outputs: list[str], scales: list[bool], transposed: list[bool]
    ) -> Iterator[HookReading]:
        """Yields the readings of all combinations. An SAE writes the hook that it reads."""
        for hook_in, scaled in product(inputs, scales):
            x = self.values[hook_in]
            factor = to_unit_scale(x) if scaled else 1.0
            stored = self._as_stored(factor * x)
            z = self.dictionary.encode(stored)
            l0 = float((z > 0).sum(1).float().mean())
            written = self._as_published(self.dictionary.decode(z, stored))
            for transpose, hook_out in product(transposed, [hook_in] if self._is_sae else outputs):
                y_hat = written + self._transposition(factor * x) if transpose else written
                y = self.values[hook_out]
                if scaled:
                    y_hat = y_hat / (factor if self._is_sae else to_unit_scale(y))
                yield HookReading(hook_in, hook_out, scaled, transpose, unexplained(y, y_hat), l0)

    def _transposition(self, x: Tensor) -> Tensor:
        """Returns what changes if the published skip connection is transposed. `x` is the published input."""
        skip = self.dictionary.W_skip
        assert skip is not None
        if self.layer.bare_norm and self._gain_and_bias is not None:
            skip = skip * self._gain_and_bias[0]
        return x @ skip - x @ skip.T

    # a dictionary that was published for the norm's output without gain is stored for the norm's output

    def _as_stored(self, x: Tensor) -> Tensor:
        """Returns the input of the stored dictionary, given that of the published one."""
        if not self.layer.bare_norm or self._gain_and_bias is None:
            return x
        gain, bias = self._gain_and_bias
        return gain * x + bias

    def _as_published(self, y_hat: Tensor) -> Tensor:
        """Returns the output of the published dictionary, given that of the stored one."""
        if not (self.layer.bare_norm and self._is_sae) or self._gain_and_bias is None:
            return y_hat
        gain, bias = self._gain_and_bias
        return (y_hat - bias) / gain


def hook_values(model: LanguageModel, layer: int, validation: Path) -> dict[str, Float[Tensor, "token d"]]:
    """Returns the values of all hooks of a layer on the scored held-out tokens, in float32 on the CPU."""
    tokens = open_tokens(validation)
    token = tokens.take(slice(min(len(tokens), ceil(TOKENS / tokens.context))))
    scored = scored_positions(token, tokens.separator_id)
    sites = {
        HOOK_IN_BLOCK[name]: Site(name, layer)
        for name in HOOKS
        if not (name == "resid_mid" and model.anatomy.parallel)
        and not (name == "mlp_added" and not model.changes_mlp_out)
    }
    if layer < model.layers - 1:
        sites[RESID_POST] = Site("resid_pre", layer + 1)
    captured = capture(model, token, list(sites.values()))
    values = {hook: captured[site].cpu()[scored].float() for hook, site in sites.items()}
    if HOOK_IN_BLOCK["mlp_added"] not in values:
        # the two are one site; the files may name either
        values[HOOK_IN_BLOCK["mlp_added"]] = values[HOOK_IN_BLOCK["mlp_out"]]
    return values


def to_unit_scale(x: Float[Tensor, "token d"]) -> float:
    """Returns the factor that gives rows a mean norm of √d."""
    return float(x.shape[1] ** 0.5 / torch.linalg.vector_norm(x, dim=1).mean())


def unexplained(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> float:
    """Returns the fraction of variance unexplained. Predicting the mean gives 1."""
    return float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())
