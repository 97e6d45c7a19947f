"""Small held-out sets and dictionaries for the tests of this stage."""

import torch
from tests.models import VOCABULARY

from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel

BOS = 1


def make_held_out(sequences: int = 6, positions: int = 12, seed: int = 0) -> HeldOut:
    """Random tokens with a BOS at position 0 and at random positions; each BOS begins a document."""
    generator = torch.Generator().manual_seed(seed)
    token = torch.randint(4, VOCABULARY, (sequences, positions), generator=generator)
    token[:, 0] = BOS
    token[torch.rand(token.shape, generator=generator) < 0.1] = BOS
    scored = token != BOS
    document = (token == BOS).flatten().cumsum(0).view_as(token) - 1
    return HeldOut(token, document, scored, ~scored)


def make_dictionary(model: LanguageModel, layer: int = 0, seed: int = 0, **changes) -> Dictionary:
    """A random topk dictionary for `model`, with outputs of the scale of activations."""
    generator = torch.Generator().manual_seed(seed)
    width, d = (
        40,
        capture(model, torch.tensor([[BOS]]), [Site("mlp_in", layer)])[Site("mlp_in", layer)].shape[-1],
    )
    W_dec = torch.randn(width, d, generator=generator)
    fields = {
        "W_enc": torch.randn(width, d, generator=generator) / d,
        "b_enc": 0.1 * torch.randn(width, generator=generator),
        "W_dec": W_dec / W_dec.norm(dim=1, keepdim=True),
        "b_dec": torch.randn(d, generator=generator) / d,
        "act": "topk",
        "k": 4,
        "layer": layer,
    }
    return Dictionary(**(fields | changes))
