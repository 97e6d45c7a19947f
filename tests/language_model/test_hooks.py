"""Captured and edited sites: every site can be read and replaced, and hooks are removed afterwards."""

import pytest
import torch
from tests.language_model.inputs import make_legacy
from tests.models import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_model

from circuitloom.language_model import legacy_format as legacy
from circuitloom.language_model.hooks import Site, capture, capture_each, edited, observed
from circuitloom.language_model.model import LanguageModel, load_model

TOKENS = torch.randint(4, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "legacy"])
def model(request, tmp_path_factory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("model")
    if request.param != "legacy":
        return load_model(tiny_model(request.param, folder / "model"), device="cpu")
    legacy.convert(make_legacy(folder / "given"), "given", folder)
    return load_model(folder, device="cpu")


def test_an_edit_that_returns_the_value_changes_no_bit(model):
    logits = model.logits(TOKENS)
    with edited(model, {Site("mlp_out", layer): lambda _x, y: y.clone() for layer in range(model.layers)}):
        assert torch.equal(model.logits(TOKENS), logits)


def test_an_edit_reaches_later_layers_only(model):
    sites = [Site("mlp_in", 0), Site("mlp_in", 1)]
    before, logits = capture(model, TOKENS, sites), model.logits(TOKENS)
    seen = {}

    def zero(x, y):
        seen["x"] = x
        return torch.zeros_like(y)

    with edited(model, {Site("mlp_out", 0): zero}):
        after = capture(model, TOKENS, sites)
        assert torch.equal(seen["x"], after[sites[0]]) and torch.equal(before[sites[0]], after[sites[0]])
        assert not torch.allclose(before[sites[1]], after[sites[1]])
    assert torch.equal(model.logits(TOKENS), logits)


def every_site(model: LanguageModel) -> list[Site]:
    names = ["resid_pre", "attention_in", "heads", "resid_mid", "mlp_in", "neurons", "mlp_out"]
    if model.anatomy.parallel:
        names.remove("resid_mid")
    sites = [Site(name, layer) for layer in range(model.layers) for name in names]
    return [*sites, Site("embedding"), Site("final_norm"), Site("unembedding_in")]


def test_the_value_returned_by_an_edit_is_what_is_captured_and_changes_the_logits(model):
    before = model.logits(TOKENS)
    values = capture(model, TOKENS, every_site(model))
    for site in every_site(model):
        with edited(model, {site: lambda _x, y: 2 * y}):
            assert not torch.allclose(model.logits(TOKENS), before), site
            torch.testing.assert_close(capture(model, TOKENS, [site])[site], 2 * values[site])
    assert torch.equal(model.logits(TOKENS), before)


def test_an_edit_of_resid_mid_also_changes_the_stream_that_bypasses_the_mlp(model):
    if model.anatomy.parallel:
        pytest.skip("no resid_mid")
    site, after = Site("resid_mid", 0), Site("resid_pre", 1)
    values = capture(model, TOKENS, [site, after])
    with edited(model, {site: lambda _x, y: y + 1, Site("mlp_out", 0): lambda _x, y: torch.zeros_like(y)}):
        torch.testing.assert_close(capture(model, TOKENS, [after])[after], values[site] + 1)


def test_an_edit_of_mlp_out_receives_the_mlps_input_and_other_edits_the_value_twice(model):
    values = capture(model, TOKENS, every_site(model))
    seen = {}

    def record(site):
        def edit(x, y):
            seen[site] = x
            return y

        return edit

    with edited(model, {site: record(site) for site in every_site(model)}):
        model.logits(TOKENS)
    for site, x in seen.items():
        source = Site("mlp_in", site.layer) if site.name == "mlp_out" else site
        assert torch.equal(x, values[source]), site


def test_a_pass_ends_at_the_last_site(model):
    order, reached = [], []
    sites = [Site("mlp_in", 1), Site("mlp_out", 0), Site("resid_pre", 0)]
    with observed(model, [Site("mlp_out", 1)], lambda site, _value: reached.append(site)):
        capture_each(model, TOKENS, sites, lambda site, _value: order.append(site))
    assert order == sites[::-1] and not reached


def test_a_site_that_does_not_exist_is_refused(model):
    with pytest.raises(ValueError, match="no site is called mlp_middle; choose one of resid_pre"):
        capture(model, TOKENS, [Site("mlp_middle", 0)])
