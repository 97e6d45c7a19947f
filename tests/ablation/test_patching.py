"""Head patching equals edits made by hand; edits of an MLP's output change only the given positions."""

import pytest
import torch
from tests.attribution.inputs import PROMPT, load_tiny, make_dictionaries
from tests.models import ARCHITECTURES, D_MODEL, LAYERS

from circuitloom.ablation.metrics import last_logits, logit_difference
from circuitloom.ablation.patching import HeadPatching, patch_heads, replace_mlp, set_mlp, subtract_feature
from circuitloom.language_model.hooks import Site, capture, edited

TOKEN = torch.stack([PROMPT, PROMPT.roll(1)])
OTHER = TOKEN.clone()
OTHER[:, 5] = torch.tensor([33, 8])
METRIC = logit_difference(12, 20)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_the_effect_of_a_head_is_that_of_its_output_from_the_other_prompt(architecture: str, tmp_path):
    model = load_tiny(architecture, tmp_path, "float64")
    patching = patch_heads(model, TOKEN, OTHER, METRIC)
    before, heads = METRIC(model.logits(TOKEN)[:, -1]), model.anatomy.heads
    sites = [Site("heads", layer) for layer in range(LAYERS)]
    donor = capture(model, OTHER, sites)
    expected = []
    for site in sites:
        for head in range(heads):

            def patch(_x, y, site=site, head=head):
                split = y.unflatten(-1, (heads, -1)).clone()
                split[:, -1, head] = donor[site].unflatten(-1, (heads, -1))[:, -1, head]
                return split.flatten(-2)

            with edited(model, {site: patch}):
                expected.append(before - METRIC(model.logits(TOKEN)[:, -1]))
    torch.testing.assert_close(patching.effect, torch.stack(expected))
    assert (patching.effect.abs() > 1e-6).all()
    torch.testing.assert_close(patching.total, before - METRIC(model.logits(OTHER)[:, -1]))
    assert patching.layer.tolist() == [layer for layer in range(LAYERS) for _ in range(heads)]
    assert patching.head.tolist() == list(range(heads)) * LAYERS


def test_patching_a_prompt_from_itself_has_no_effect(tmp_path):
    patching = patch_heads(load_tiny("gpt2", tmp_path), TOKEN, TOKEN, METRIC)
    assert not patching.effect.any() and not patching.total.any()


def test_the_order_of_heads_is_by_mean_effect():
    effect = torch.tensor([[1.0, 1], [5, 0], [-9, 1], [0, 2]])
    patching = HeadPatching(torch.zeros(4).long(), torch.arange(4), effect, torch.ones(2))
    assert patching.order().tolist() == [1, 0, 3, 2]


@torch.inference_mode()
def test_edits_of_an_mlp_change_its_output_only_where_asked(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    dictionary = make_dictionaries(model)[1]
    where = torch.arange(6) >= 2
    x, y = torch.randn(2, 2, 6, D_MODEL, generator=torch.Generator().manual_seed(0))
    z = dictionary.encode(x)
    feature = int(z[:, 2:].amax((0, 1)).argmax())
    value = torch.arange(float(D_MODEL))
    expected = {
        replace_mlp(dictionary, where): dictionary.decode(z, x),
        set_mlp(0.0, where): torch.zeros_like(y),
        set_mlp(value, where): value.expand_as(y),
        subtract_feature(dictionary, feature, where): y - z[..., [feature]] * dictionary.W_dec[feature],
    }
    for edit, inside in expected.items():
        made = edit(x, y)
        assert torch.equal(made[:, :2], y[:, :2])
        torch.testing.assert_close(made[:, 2:], inside[:, 2:])
        assert (made[:, 2:] != y[:, 2:]).any()


@torch.inference_mode()
def test_an_mlp_set_to_its_own_output_changes_nothing(tmp_path):
    model = load_tiny("llama", tmp_path)
    site = Site("mlp_out", 1)
    own = capture(model, PROMPT[None], [site])[site][0]
    with edited(model, {site: set_mlp(own, torch.ones(len(PROMPT), dtype=torch.bool))}):
        logits = last_logits(model, PROMPT[None])
    assert torch.equal(logits, last_logits(model, PROMPT[None]))
