"""Captured and edited sites: every site can be read and replaced, and hooks are removed afterwards."""

import pytest
import torch
from tests.architectures import tiny_architecture
from tests.language_model.inputs import make_legacy
from tests.models import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_model

from circuitloom.config.activations import MLP_OUTPUTS
from circuitloom.language_model import legacy_format as legacy
from circuitloom.language_model.hooks import ReadingEdit, Site, capture, capture_each, edited, observed
from circuitloom.language_model.model import LanguageModel, load_model

TOKENS = torch.randint(4, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


CHANGED = ("gemma3_text", "granite")
"""Models with a norm behind the MLP, and with a residual multiplier."""


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *CHANGED, "legacy"])
def model(request, tmp_path_factory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("model")
    if request.param in CHANGED:
        return load_model(tiny_architecture(request.param, folder / "model"), device="cpu")
    if request.param != "legacy":
        return load_model(tiny_model(request.param, folder / "model"), device="cpu")
    legacy.convert(make_legacy(folder / "given"), "given", folder)
    return load_model(folder, device="cpu")


@pytest.mark.parametrize("site", [*MLP_OUTPUTS, "attn_added"])
def test_an_edit_that_returns_the_value_changes_no_bit(site, model):
    logits = model.logits(TOKENS)
    with edited(model, {Site(site, layer): lambda _x, y: y.clone() for layer in range(model.layers)}):
        assert torch.equal(model.logits(TOKENS), logits)


@pytest.mark.parametrize("site", MLP_OUTPUTS)
def test_an_edit_reaches_later_layers_only(site, model):
    sites = [Site("mlp_in", 0), Site("mlp_in", 1)]
    before, logits = capture(model, TOKENS, sites), model.logits(TOKENS)
    seen = {}

    def zero(x, y):
        seen["x"] = x
        return torch.zeros_like(y)

    with edited(model, {Site(site, 0): zero}):
        after = capture(model, TOKENS, sites)
        assert torch.equal(seen["x"], after[sites[0]]) and torch.equal(before[sites[0]], after[sites[0]])
        assert not torch.allclose(before[sites[1]], after[sites[1]])
    assert torch.equal(model.logits(TOKENS), logits)


def every_site(model: LanguageModel) -> list[Site]:
    names = ["resid_pre", "attention_in", "heads", "resid_mid", "mlp_in", "neurons", *MLP_OUTPUTS]
    names.append("attn_added")
    if model.anatomy.parallel:
        names.remove("resid_mid")
    sites = [Site(name, layer) for layer in range(model.layers) for name in names]
    return [*sites, Site("embedding"), Site("final_norm"), Site("unembedding_in")]


def test_the_value_returned_by_an_edit_is_what_is_captured_and_changes_the_logits(model):
    before = model.logits(TOKENS)
    values = capture(model, TOKENS, every_site(model))
    for site in every_site(model):
        # a norm would undo a mere factor
        with edited(model, {site: lambda _x, y: 2 * y + 0.5}):
            assert not torch.allclose(model.logits(TOKENS), before), site
            torch.testing.assert_close(capture(model, TOKENS, [site])[site], 2 * values[site] + 0.5)
    assert torch.equal(model.logits(TOKENS), before)


def test_an_edit_of_resid_mid_also_changes_the_stream_that_bypasses_the_mlp(model):
    if model.anatomy.parallel:
        pytest.skip("no resid_mid")
    site, after = Site("resid_mid", 0), Site("resid_pre", 1)
    values = capture(model, TOKENS, [site, after])
    for output in MLP_OUTPUTS:
        with edited(model, {site: lambda _x, y: y + 1, Site(output, 0): lambda _x, y: torch.zeros_like(y)}):
            torch.testing.assert_close(capture(model, TOKENS, [after])[after], values[site] + 1)


def test_an_edit_of_an_mlps_output_receives_its_input_and_other_edits_the_value_twice(model):
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
        source = Site("mlp_in", site.layer) if site.name in MLP_OUTPUTS else site
        assert torch.equal(x, values[source]), site


def test_an_edit_of_mlp_added_changes_the_stream_by_as_much(model):
    site, after = Site("mlp_added", 0), Site("resid_pre", 1)
    before = capture(model, TOKENS, [after])[after]
    change = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    with edited(model, {site: lambda _x, y: y + change}):
        torch.testing.assert_close(capture(model, TOKENS, [after])[after], before + change)


def test_an_edit_of_attn_added_changes_the_stream_after_attention_by_as_much(model):
    # in a block with attention and MLP in parallel, the MLP does not read it
    site, after = (
        Site("attn_added", 0),
        Site("resid_pre", 1) if model.anatomy.parallel else Site("resid_mid", 0),
    )
    before = capture(model, TOKENS, [after])[after]
    change = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    with edited(model, {site: lambda _x, y: y + change}):
        torch.testing.assert_close(capture(model, TOKENS, [after])[after], before + change)


def test_an_edit_of_mlp_added_sees_earlier_edits_of_mlp_in_and_mlp_out(model):
    seen = {}

    def record(x, y):
        seen.update(x=x, y=y)
        return y

    edits = {Site("mlp_in", 0): lambda _x, y: y + 1, Site("mlp_out", 0): lambda _x, y: torch.zeros_like(y)}
    expected = capture(model, TOKENS, [Site("mlp_in", 0)])[Site("mlp_in", 0)] + 1
    with edited(model, {Site("mlp_added", 0): record}):
        with edited(model, edits):
            pass
        model.logits(TOKENS)
        assert not seen["y"].eq(0).all()
    with edited(model, edits), edited(model, {Site("mlp_added", 0): record}):
        model.logits(TOKENS)
    assert torch.equal(seen["x"], expected) and seen["y"].eq(0).all()


@pytest.mark.parametrize("site", MLP_OUTPUTS)
def test_an_edit_reads_the_site_that_it_names_after_earlier_edits(site, model):
    if model.anatomy.parallel:
        with (
            pytest.raises(ValueError, match="no resid_mid; use resid_pre"),
            edited(model, {Site(site, 1): ReadingEdit("resid_mid", lambda _x, y: y)}),
        ):
            pass
        return
    seen = {}

    def record(reads):
        def keep(x, y):
            seen[reads], seen["y"] = x, y
            return y

        return ReadingEdit(reads, keep)

    stream = Site("resid_mid", 1)
    before = capture(model, TOKENS, [stream])[stream]
    for edits in ({}, {stream: lambda _x, y: y + 1}):
        for reads in ("resid_mid", "mlp_in", site):
            # the reading edit is outermost, and reads what the inner edit leaves
            with edited(model, {Site(site, 1): record(reads)}), edited(model, edits):
                inputs = capture(model, TOKENS, [Site("mlp_in", 1)])[Site("mlp_in", 1)]
                model.logits(TOKENS)
            expected = {"resid_mid": before + len(edits), "mlp_in": inputs, site: seen["y"]}
            assert torch.equal(seen[reads], expected[reads])


def test_a_gradient_flows_through_an_edit_of_mlp_added(model):
    """Also where the edit returns the value: the leaf stands for it."""
    leaves = []

    def leaf(_x, y):
        leaves.append(y.detach().clone().requires_grad_())
        return leaves[-1]

    after = Site("resid_pre", 1)
    with edited(model, {Site("mlp_added", 0): leaf}):
        capture(model, TOKENS, [after])[after].sum().backward()
    torch.testing.assert_close(leaves[0].grad, torch.ones_like(leaves[0]))


def test_a_pass_ends_at_the_last_site(model):
    order, reached = [], []
    sites = [Site("mlp_in", 1), Site("mlp_out", 0), Site("resid_pre", 0)]
    with observed(model, [Site("mlp_out", 1)], lambda site, _value: reached.append(site)):
        capture_each(model, TOKENS, sites, lambda site, _value: order.append(site))
    assert order == sites[::-1] and not reached


def test_a_site_that_does_not_exist_is_refused(model):
    with pytest.raises(ValueError, match="no site is called mlp_middle; choose one of resid_pre"):
        capture(model, TOKENS, [Site("mlp_middle", 0)])
