"""Imported dictionaries compute what their projects' own formulas say; nothing is changed without need."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import published_folders as folders
from tests.architectures import tiny_architecture
from tests.language_model.inputs import make_hub_repository
from tests.models import tiny_gpt2
from tests.published_folders import WIDTH, D

from circuitloom.config.dictionaries import Run
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.dictionaries.dictionary import load_dictionary
from circuitloom.dictionaries.formats.published import ImportJob, import_run, read_published
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model

X = torch.randn(40, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def assert_computes(dictionary, forward, x=X) -> None:
    z, y_hat = forward(x)
    exact = dictionary.to("cpu", torch.float64)
    assert (z > 0).any() and (z == 0).any()
    torch.testing.assert_close(exact.encode(x), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact(x), y_hat, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("act", ["relu", "jumprelu", "topk"])
def test_a_set_of_circuit_tracer_keeps_its_function_and_its_bits(act: str, skip: bool, tmp_path) -> None:
    made = folders.circuit_tracer(tmp_path, act=act, skip=skip)
    for layer, forward in made.items():
        dictionary = read_published(tmp_path, layer)
        assert_computes(dictionary, forward)
        stored = load_file(tmp_path / f"layer_{layer}.safetensors")
        for name, value in stored.items():
            assert torch.equal(getattr(dictionary, name.removeprefix("activation_function.")), value)
        assert (dictionary.site_in, dictionary.site_out, dictionary.layer) == ("mlp_in", "mlp_added", layer)


@pytest.mark.parametrize("affine", [False, True])
def test_a_transcoder_of_gemma_scope_2_keeps_its_function(affine: bool, tmp_path) -> None:
    place = tmp_path / "layer_2_width_16k_l0_small"
    forward = folders.gemma_scope(place, 2, affine=affine, config=folders.scope_2_config(2))
    dictionary = read_published(tmp_path, 2)
    assert_computes(dictionary, forward)
    assert (dictionary.site_in, dictionary.site_out) == ("mlp_in", "mlp_added")
    assert (dictionary.W_skip is not None) == affine
    # Gemma Scope applies ReLU, so thresholds below 0 are those of ReLU
    stored = load_file(place / "params.safetensors")["threshold"]
    assert (stored < 0).any()
    assert dictionary.threshold is not None and torch.equal(dictionary.threshold, stored.relu())


@pytest.mark.parametrize(("part", "site"), [("mlp", "mlp_added"), ("res", "resid_pre")])
def test_an_sae_of_gemma_scope_1_keeps_its_function(part: str, site: str, tmp_path) -> None:
    root = tmp_path / f"gemma-scope-2b-pt-{part}"
    forward = folders.gemma_scope(root / "layer_1/width_16k/average_l0_76", 1, second=False)
    layer = 2 if part == "res" else 1
    dictionary = read_published(root, layer)
    assert_computes(dictionary, forward)
    assert (dictionary.site_in, dictionary.site_out, dictionary.layer) == (site, site, layer)


def test_a_transcoder_of_gemma_scope_1_reads_in_front_of_the_gain(tmp_path) -> None:
    root = tmp_path / "gemma-scope-2b-pt-transcoders"
    forward = folders.gemma_scope(root / "layer_1/width_16k/average_l0_76", 1, second=False)
    with pytest.raises(ValueError, match=r"reads ln2\.hook_normalized, the norm's output without its gain"):
        read_published(root, 1)
    model = load_model(tiny_architecture("gemma3_text", tmp_path / "model"), device="cpu")
    gain = 1 + model.norm(1, model.anatomy.norm_mlp).weight.double()
    assert (gain - 1).abs().max() > 0.1
    dictionary = read_published(root, 1, model).to("cpu", torch.float64)
    z, y_hat = forward(X)
    torch.testing.assert_close(dictionary.encode(gain * X), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary(gain * X), y_hat, rtol=1e-5, atol=1e-5)


def test_gain_and_bias_of_a_layer_norm_are_folded_with_the_skip_connection(tmp_path) -> None:
    forward = folders.circuit_tracer(
        tmp_path / "set", skip=True, hooks=("ln2.hook_normalized", "hook_mlp_out")
    )[1]
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    norm = model.norm(1, "ln_2")
    tokens = torch.randint(4, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    sites = [Site("resid_mid", 1), Site("mlp_in", 1)]
    resid, x = (capture(model, tokens, sites)[site].flatten(0, 1) for site in sites)
    bare = torch.nn.functional.layer_norm(resid.double(), [D], eps=norm.eps)
    dictionary = read_published(tmp_path / "set", 1, model)
    z, y_hat = forward(bare)
    torch.testing.assert_close(dictionary.encode(x).double(), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dictionary(x).double(), y_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("b_dec_from_input", [False, True])
@pytest.mark.parametrize("architecture", folders.SAELENS)
def test_a_dictionary_of_saelens_keeps_its_function(architecture, b_dec_from_input, tmp_path) -> None:
    transcoder = "transcoder" in architecture
    if transcoder and b_dec_from_input:
        folders.saelens(tmp_path, 1, architecture, True)
        with pytest.raises(ValueError, match="apply_b_dec_to_input, which SAELens does not support"):
            read_published(tmp_path, 1)
        return
    forward = folders.saelens(tmp_path, 1, architecture, b_dec_from_input)
    dictionary = read_published(tmp_path, 1)
    assert_computes(dictionary, forward)
    assert (dictionary.site_in, dictionary.site_out) == ("mlp_in" if transcoder else "mlp_out", "mlp_out")
    assert dictionary.act == {
        "topk": "topk",
        "standard": "relu",
        "transcoder": "relu",
        "skip_transcoder": "relu",
    }.get(architecture, "threshold")
    stored = load_file(tmp_path / "sae_weights.safetensors")
    assert torch.equal(dictionary.W_dec, stored["W_dec"])
    if not b_dec_from_input and architecture != "gated":
        assert torch.equal(dictionary.W_enc, stored["W_enc"].T) and torch.equal(
            dictionary.b_enc, stored["b_enc"]
        )


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_activations_rescaled_by_decoder_norms_keep_their_values(architecture: str, tmp_path) -> None:
    forward = folders.saelens(tmp_path, 1, architecture, True, rescaled=True)
    dictionary = read_published(tmp_path, 1)
    assert_computes(dictionary, forward)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(WIDTH))


def test_a_constant_factor_of_the_input_is_folded(tmp_path) -> None:
    forward = folders.saelens(tmp_path, 1, "standard", True)
    changed = {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.25}
    folders.saelens(tmp_path / "scaled", 1, "standard", True, **changed)
    dictionary = read_published(tmp_path / "scaled", 1).to("cpu", torch.float64)
    # in SAELens, x is multiplied by the factor first, and the reconstruction divided by it
    z, y_hat = forward(0.25 * X)
    torch.testing.assert_close(dictionary.encode(X), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dictionary(X), y_hat / 0.25, rtol=1e-6, atol=1e-6)


def test_a_flat_config_of_an_old_version_of_saelens_is_read(tmp_path) -> None:
    forward = folders.saelens(tmp_path, 1, "standard", True)
    old = {
        "hook_point": "blocks.1.mlp.hook_out", "hook_point_layer": 1, "d_in": D, "d_sae": WIDTH,
        "model_name": "tiny", "normalize_activations": False, "activation_fn_str": "relu", "dtype": "torch.float32",
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    # apply_b_dec_to_input is true by default
    assert_computes(read_published(tmp_path, 1), forward)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
def test_a_dictionary_of_sparsify_keeps_its_function(transcode: bool, skip: bool, tmp_path) -> None:
    if skip and not transcode:
        return
    made = {layer: folders.sparsify(tmp_path, layer, transcode, skip) for layer in (0, 2)}
    for layer, forward in made.items():
        dictionary = read_published(tmp_path, layer)
        assert_computes(dictionary, forward)
        assert (dictionary.site_in, dictionary.site_out) == ("mlp_in" if transcode else "mlp_out", "mlp_out")
        assert dictionary.k == folders.K


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_an_sae_of_the_attention_module_is_read_if_the_model_adds_the_output_as_it_is(
    model_type: str, tmp_path
) -> None:
    forward = folders.sparsify(tmp_path / "set", 1, transcode=False, module="self_attn")
    model = load_model(tiny_architecture(model_type, tmp_path / "model"), device="cpu")
    # independent of the model's anatomy: whether the module's output is what is added
    token = torch.arange(8)[None]
    found: list[torch.Tensor] = []
    handle = model.attention(1).register_forward_hook(lambda module, inputs, output: found.append(output[0]))
    added = capture(model, token, [Site("attn_added", 1)])[Site("attn_added", 1)]
    handle.remove()
    same = torch.equal(added, found[0])
    assert same == (model_type == "llama") == (not model.changes_attention_out)
    if same:
        assert_computes(read_published(tmp_path / "set", 1, model), forward)
    else:
        with pytest.raises(
            ValueError, match=r"layers\.1\.self_attn\.output, and Gemma3ForCausalLM changes this"
        ):
            read_published(tmp_path / "set", 1, model)


@pytest.mark.parametrize("name", folders.DICTIONARY_LEARNING)
def test_an_sae_of_dictionary_learning_keeps_its_function(name: str, tmp_path) -> None:
    forward = folders.dictionary_learning(tmp_path, 0, name)
    dictionary = read_published(tmp_path, 1)
    assert_computes(dictionary, forward)
    # the residual stream after block 0 is that before block 1
    assert (dictionary.site_in, dictionary.site_out, dictionary.layer) == ("resid_pre", "resid_pre", 1)


def test_names_of_a_compiled_module_are_those_of_the_module(tmp_path) -> None:
    forward = folders.dictionary_learning(tmp_path, 0, "BatchTopKSAE", prefix="_orig_mod.")
    assert_computes(read_published(tmp_path, 1), forward)


class Hostile:
    """Creates a folder when unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        import os

        return os.mkdir, (self.mark,)


def test_a_state_dict_that_would_run_code_is_refused_and_runs_nothing(tmp_path) -> None:
    folders.dictionary_learning(tmp_path, 0, "AutoEncoder")
    torch.save({"bias": Hostile(str(tmp_path / "mark"))}, tmp_path / "ae.pt")
    with pytest.raises(
        ValueError, match=r"ae\.pt: .*more than weights, and reading it could run code"
    ) as error:
        read_published(tmp_path, 1)
    assert "\n" not in str(error.value) and not (tmp_path / "mark").exists()


def damage(tensors: dict[str, torch.Tensor], fault: str) -> None:
    if fault == "missing":
        del tensors["b_dec"]
    elif fault == "shape":
        tensors["b_enc"] = torch.zeros(3)
    else:
        tensors["W_dec"][3, 4] = float(fault)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "has no b_dec, but W_dec, W_enc, b_enc"),
        ("shape", r"b_enc has the shape \[3\], not \[24\]"),
        ("nan", "W_dec has values that are not finite"),
        ("inf", "W_dec has values that are not finite"),
    ],
)
def test_damaged_weights_are_refused_in_one_line(fault: str, words: str, tmp_path) -> None:
    from safetensors.torch import save_file

    folders.circuit_tracer(tmp_path, layers=1)
    file = tmp_path / "layer_0.safetensors"
    tensors = load_file(file)
    damage(tensors, fault)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"layer_0\.safetensors: {words}") as error:
        read_published(tmp_path, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number_format", [torch.bfloat16, torch.float16])
def test_short_numbers_become_float32_exactly(number_format, tmp_path) -> None:
    from safetensors.torch import save_file

    folders.circuit_tracer(tmp_path, layers=1)
    file = tmp_path / "layer_0.safetensors"
    short = {name: value.to(number_format) for name, value in load_file(file).items()}
    save_file(short, file)
    dictionary = read_published(tmp_path, 0)
    for name, value in short.items():
        assert torch.equal(getattr(dictionary, name), value.float())


def test_a_decoder_row_of_zeros_stays_zero_when_activations_are_rescaled(tmp_path) -> None:
    from safetensors.torch import save_file

    folders.saelens(tmp_path, 1, "topk", rescaled=True)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    tensors["W_dec"][2] = 0
    save_file(tensors, file)
    dictionary = read_published(tmp_path, 1)
    assert dictionary.W_dec.isfinite().all() and not dictionary.W_dec[2].any()


def test_an_sae_of_a_centred_residual_stream_reads_the_stream_itself(tmp_path) -> None:
    forward = folders.saelens(tmp_path, 1, "standard", True, hooks=("", "hook_resid_pre"))
    settings = json.loads((tmp_path / "cfg.json").read_text())
    settings["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    dictionary = read_published(tmp_path, 1).to("cpu", torch.float64)
    z, y_hat = forward(X - X.mean(1, keepdim=True))
    torch.testing.assert_close(dictionary.encode(X), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dictionary(X), y_hat, rtol=1e-6, atol=1e-6)


def import_job(folder: Path) -> ImportJob:
    """The import of layer 1 of a tiny model, with random held-out tokens."""
    model = load_model(tiny_gpt2(folder / "model"), device="cpu")
    token = np.random.default_rng(0).integers(4, 60, (4, 32), dtype=np.int32)
    attributes = {"bos_id": 1, "separator_id": 1, "vocabulary": 64}
    write_tokens(folder / "validation.zarr", [(token, np.zeros_like(token))], 4, attributes)
    return ImportJob(layer=1, model=model, validation=folder / "validation.zarr")


def imported(files: str, **keys: Any) -> Run:
    """A run of topk transcoders with a skip connection."""
    return Run(
        name="theirs", files=files, format="circuit_tracer", site="mlp_added", act="topk", k=folders.K, width=WIDTH,
        skip=True, largest_fvu=1e9, **keys,
    )  # fmt: skip


def test_an_import_is_tested_on_held_out_tokens_before_it_is_saved(tmp_path) -> None:
    folders.circuit_tracer(tmp_path / "set", act="topk", skip=True)
    job, run = import_job(tmp_path), imported(str(tmp_path / "set"))
    output = tmp_path / "theirs" / "layer1"
    with pytest.raises(
        ValueError, match=r"layer_1\.safetensors: layer 1 does not fit with mlp\.hook_in to hook_mlp_out"
    ):
        import_run(run.model_copy(update={"largest_fvu": 0.9}), job, output)
    assert not output.exists()
    import_run(run, job, output)
    saved, read = load_dictionary(output), read_published(tmp_path / "set", 1)
    assert torch.equal(saved(X.float()), read(X.float()))
    assert (saved.site_in, saved.site_out, saved.act, saved.k) == ("mlp_in", "mlp_added", "topk", folders.K)
    stored = json.loads((output / "config.json").read_text())
    assert stored["source"] == str(tmp_path / "set" / "layer_1.safetensors")
    assert stored["run"]["revision"] is None


def test_an_import_from_the_hub_reads_and_records_the_commit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folders.circuit_tracer(tmp_path / "old" / "sub", act="topk", skip=True)
    commit = make_hub_repository(tmp_path / "cache", "owner/name", tmp_path / "old", "old")
    # the branch main moves on after the study was read
    folders.circuit_tracer(tmp_path / "new" / "sub", layers=1)
    make_hub_repository(tmp_path / "cache", "owner/name", tmp_path / "new")
    output = tmp_path / "theirs" / "layer1"
    import_run(imported("owner/name", subfolder="sub"), import_job(tmp_path), output, commit)
    assert torch.equal(load_dictionary(output)(X.float()), read_published(tmp_path / "old", 1)(X.float()))
    stored = json.loads((output / "config.json").read_text())
    assert (stored["run"]["subfolder"], stored["run"]["revision"]) == ("sub", commit)
    assert stored["source"] == f"layer_1.safetensors of owner/name/sub (revision {commit})"
