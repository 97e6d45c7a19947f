"""A good dictionary whose files name wrong hooks is refused, and the message names the hooks that fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.architectures import tiny_architecture
from tests.models import CONTEXT, D_MODEL, VOCABULARY
from torch import Tensor

from circuitloom.config.published_files import FileReference, LocalFiles
from circuitloom.config.published_layer import PublishedLayer
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.dictionaries.formats.hook_check import TOKENS, HookCheck
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel, load_model

LAYER, WIDTH = 1, 400
SITES = {
    "mlp.hook_in": "mlp_in", "ln2.hook_normalized": "mlp_in", "hook_resid_mid": "resid_mid", "mlp.hook_out": "mlp_out",
    "hook_mlp_out": "mlp_added", "hook_resid_pre": "resid_pre",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    """A model with a norm after the MLP, gains far from 1, and a stream whose norm is far from √d."""
    model = load_model(tiny_architecture("gemma3_text", tmp_path_factory.mktemp("model")), device="cpu")
    generator = torch.Generator().manual_seed(0)
    model.module.get_submodule(model.anatomy.embedding).weight.data *= 8  # type: ignore[operator]
    for name in (model.anatomy.norm_mlp, model.anatomy.norm_mlp_after):
        norm = model.norm(LAYER, name)
        assert norm is not None
        # Gemma's gain is 1 + weight
        norm.weight.data = torch.exp(1.5 * torch.randn(D_MODEL, generator=generator)) - 1
    return model


@pytest.fixture(scope="module")
def validation(tmp_path_factory) -> Path:
    """Held-out tokens."""
    folder = tmp_path_factory.mktemp("corpus") / "validation.zarr"
    token = np.random.default_rng(0).integers(4, VOCABULARY, (2 * TOKENS // CONTEXT, CONTEXT), dtype=np.int32)
    attributes = {"bos_id": 1, "separator_id": 1, "vocabulary": VOCABULARY}
    write_tokens(folder, [(token, np.zeros_like(token))], len(token), attributes)
    return folder


@pytest.fixture(scope="module")
def values(model, validation) -> dict[str, Tensor]:
    """Values of the hooks on the tokens of a check and on as many others, by their definitions."""
    from circuitloom.corpus.tokens import open_tokens

    token = open_tokens(validation).take(slice(None))
    wanted = {hook: Site(site, LAYER) for hook, site in SITES.items() if hook != "ln2.hook_normalized"}
    captured = capture(model, token, list(wanted.values()))
    found = {hook: captured[site][:, 1:].flatten(0, 1) for hook, site in wanted.items()}
    stream = found["hook_resid_mid"]
    found["ln2.hook_normalized"] = stream / (stream.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return found


def fitted(x: Tensor, y: Tensor, skip: float = 0) -> dict[str, Tensor]:
    """Random features of x whose decoder is fitted to y by least squares."""
    generator = torch.Generator().manual_seed(1)
    W_enc = torch.randn(WIDTH, x.shape[1], generator=generator) / x.norm(dim=1).mean()
    b_enc = torch.randn(WIDTH, generator=generator) / 2
    W_skip = skip * torch.randn(y.shape[1], x.shape[1], generator=generator) if skip else None
    target = y if W_skip is None else y - x @ W_skip.T
    z = (x @ W_enc.T + b_enc).relu()
    ones = torch.cat([z, torch.ones(len(z), 1)], 1).double()
    ridge = 1e-9 * len(ones) * torch.eye(WIDTH + 1, dtype=torch.float64)
    solution = torch.linalg.solve(ones.T @ ones + ridge, ones.T @ target.double()).float()
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": solution[:-1], "b_dec": solution[-1]}
    return tensors if W_skip is None else tensors | {"W_skip": W_skip}


def check(
    tensors, hook_in: str, hook_out: str, model, validation, largest_fvu: float = 0.9, **about
) -> HookCheck:
    """The check of a dictionary that was published for `hook_in` and `hook_out`, as its files claim."""
    bare = hook_in == "ln2.hook_normalized"
    if bare:
        gain = 1 + model.norm(LAYER, model.anatomy.norm_mlp).weight.detach()
        tensors = {**tensors, "W_enc": tensors["W_enc"] / gain}
        tensors |= {"W_skip": tensors["W_skip"] / gain} if "W_skip" in tensors else {}
    site_in, site_out = SITES[hook_in], SITES[hook_out]
    dictionary = Dictionary(**tensors, act="relu", site_in=site_in, site_out=site_out, layer=LAYER)
    layer = PublishedLayer(
        layer=LAYER, weights=FileReference(LocalFiles(Path("/set")), "layer_1.safetensors"), config=None,
        format="circuit_tracer", architecture="transcoder", act="relu", k=None, l0=None, width=WIDTH, d_in=D_MODEL,
        d_out=D_MODEL, skip="W_skip" in tensors, hook_in=hook_in, hook_out=hook_out, site_in=site_in,
        site_out=site_out, bare_norm=bare, attention_output=False, settings={}, model_name=None,
    )  # fmt: skip
    return HookCheck(dictionary, replace(layer, **about), model, validation, largest_fvu)


INPUTS = ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
OUTPUTS = ("mlp.hook_out", "hook_mlp_out")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("read", INPUTS)
def test_a_transcoder_with_right_hooks_passes(read, output, model, validation, values) -> None:
    tensors = fitted(values[read], values[output])
    found = check(tensors, read, output, model, validation)
    assert found.own.fvu < 0.2
    assert found.verdict().startswith("/set/layer_1.safetensors: layer 1: FVU 0.")
    # the independent formula on the same tokens: sequences of a check are the first ones
    n = TOKENS // CONTEXT * (CONTEXT - 1)
    x, y = values[read][:n], values[output][:n]
    z = (x @ tensors["W_enc"].T + tensors["b_enc"]).relu()
    error = (y - z @ tensors["W_dec"] - tensors["b_dec"]).square().sum()
    assert found.own.fvu == pytest.approx(float(error / (y - y.mean(0)).square().sum()), rel=1e-3)
    assert found.own.l0 == pytest.approx(float((z > 0).sum() / n), rel=1e-3) and found.n_tokens == n


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("claimed", INPUTS)
@pytest.mark.parametrize("read", INPUTS)
def test_a_wrong_input_is_refused_with_the_right_one(
    read, claimed, output, model, validation, values
) -> None:
    if read == claimed:
        return
    tensors = fitted(values[read], values[output])
    with pytest.raises(
        ValueError, match=rf"does not fit with {claimed} to {output}, as its files say"
    ) as error:
        check(tensors, claimed, output, model, validation).verdict()
    assert f"it fits with {read} to {output} (FVU 0." in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("claimed", OUTPUTS)
def test_a_wrong_output_is_refused_with_the_right_one(claimed, model, validation, values) -> None:
    (right,) = set(OUTPUTS) - {claimed}
    tensors = fitted(values["mlp.hook_in"], values[right])
    with pytest.raises(ValueError, match=rf"does not fit .*it fits with mlp.hook_in to {right} \(FVU 0\."):
        check(tensors, "mlp.hook_in", claimed, model, validation).verdict()


@pytest.mark.parametrize("read", INPUTS)
def test_a_transposed_skip_connection_is_refused_and_named(read, model, validation, values) -> None:
    tensors = fitted(values[read], values["hook_mlp_out"], skip=3)
    assert check(tensors, read, "hook_mlp_out", model, validation).own.fvu < 0.2
    tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    with pytest.raises(
        ValueError, match=rf"it fits with {read} to hook_mlp_out, skip connection transposed \(FVU 0\."
    ):
        check(tensors, read, "hook_mlp_out", model, validation).verdict()


def test_scaled_activations_are_refused_and_named(model, validation, values) -> None:
    x, y = values["hook_resid_mid"], values["hook_mlp_out"]
    scaled_x, scaled_y = (D_MODEL**0.5 / each.norm(dim=1).mean() * each for each in (x, y))
    tensors = fitted(scaled_x, scaled_y)
    with pytest.raises(ValueError, match=r"it fits with .*inputs and outputs scaled to a mean norm of √d"):
        check(tensors, "hook_resid_mid", "hook_mlp_out", model, validation).verdict()


def test_an_sae_of_another_site_is_refused_with_its_own(model, validation, values) -> None:
    x = values["hook_mlp_out"]
    # with fewer directions than d: an SAE of all directions is close to the identity at every site
    directions = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:8]
    projection = directions.T @ directions
    tensors = fitted(x @ projection, x @ projection)
    tensors["W_enc"] = tensors["W_enc"] @ projection
    assert check(tensors, "hook_mlp_out", "hook_mlp_out", model, validation).own.fvu < 0.2
    with pytest.raises(
        ValueError, match=r"does not fit with hook_resid_pre, .*it fits with hook_mlp_out \(FVU 0\."
    ):
        check(tensors, "hook_resid_pre", "hook_resid_pre", model, validation).verdict()


def test_weights_of_another_model_fit_nowhere(model, validation, values) -> None:
    tensors = fitted(values["mlp.hook_in"], torch.randn(values["mlp.hook_in"].shape) * 9)
    with pytest.raises(
        ValueError, match=r"none of \d+ other readings .*, or set largest_fvu above 1 to import them"
    ):
        check(tensors, "mlp.hook_in", "hook_mlp_out", model, validation).verdict()
    assert check(tensors, "mlp.hook_in", "hook_mlp_out", model, validation, 1e9).verdict()


@pytest.mark.parametrize("factor", [1 / 5, 1 / 3, 1, 3, 5])
def test_a_stated_number_of_active_features_may_differ_by_a_factor_of_4(
    factor, model, validation, values
) -> None:
    tensors = fitted(values["mlp.hook_in"], values["hook_mlp_out"])
    hooks = "mlp.hook_in", "hook_mlp_out"
    l0 = check(tensors, *hooks, model, validation).own.l0
    stated = check(tensors, *hooks, model, validation, l0=factor * l0)
    if 1 / 4 <= factor <= 4:
        assert stated.verdict()
    else:
        with pytest.raises(ValueError, match=rf"L0 {l0:.4g} \(the files state"):
            stated.verdict()


def test_a_much_better_reading_of_a_mediocre_dictionary_is_named(model, validation, values) -> None:
    x, y, hooks = values["mlp.hook_in"], values["hook_mlp_out"], ("mlp.hook_in", "hook_mlp_out")

    def mislabelled(scale: float) -> HookCheck:
        tensors = fitted(x, y, skip=scale)
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
        return check(tensors, *hooks, model, validation)

    # the error grows with the square of the skip connection
    scale = (0.6 / mislabelled(1.0).own.fvu) ** 0.5
    found = mislabelled(scale)
    assert 0.4 < found.own.fvu < 0.8
    with pytest.raises(
        ValueError, match=r"it fits with mlp\.hook_in to hook_mlp_out, skip connection transposed \(FVU 0\."
    ):
        found.verdict()
