"""Dictionaries and prompts for the tests of components."""

import torch
from tests.attribution.inputs import BOS, PROMPT, make_dictionaries
from tests.models import D_MODEL, LAYERS

from circuitloom.ablation.metrics import PromptMetric, logit_difference, make_prompt_metrics
from circuitloom.dictionaries.dictionary import Dictionary

INSIDE = PROMPT.clone()
"""A prompt with a BOS inside."""
INSIDE[4] = BOS


def make_prompt(token: torch.Tensor = INSIDE, position: int | None = None) -> PromptMetric:
    """A prompt with the difference of two logits as its metric."""
    return make_prompt_metrics([token], [logit_difference(12, 20)], BOS, position)[0]


def make_saes(model, site: str = "mlp_out", **changes) -> dict[int, Dictionary]:
    """Random SAEs on a site of every layer."""
    return make_dictionaries(model, site_in=site, site_out=site, **changes)


def exact_saes(site: str) -> dict[int, Dictionary]:
    """SAEs without error: their features are the unit vectors with both signs."""
    rows = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    nothing = torch.zeros(2 * D_MODEL), torch.zeros(D_MODEL)
    return {
        layer: Dictionary(rows, nothing[0], rows, nothing[1], "relu", None, None, None, site, site, layer)
        for layer in range(LAYERS)
    }


def random_ablated(passes: int, components: int, share: float = 0.5) -> torch.Tensor:
    """A random set of components for each pass."""
    return torch.rand(passes, components, generator=torch.Generator().manual_seed(0)) < share
