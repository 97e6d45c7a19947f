"""Sources sum to pre-activations on many architectures; unsupported ones raise a one-line error."""

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.attribution.inputs import BOS, PROMPT, load_tiny, make_dictionaries
from tests.language_model.inputs import make_legacy
from tests.models import CONTEXT, D_MODEL, LAYERS, VOCABULARY, _save

from circuitloom.ablation.interventions import ablate_frozen
from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import (
    AttributionTargets,
    direct_effects,
    feature_targets,
    logit_targets,
    source_columns,
    total_effects,
)
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import direct_sources, feature_reader
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model import legacy_format as legacy
from circuitloom.language_model.anatomy import find_anatomy
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel, load_model

SMALL = {
    "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": D_MODEL, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LLAMA_LIKE = {
    **SMALL, "intermediate_size": 40, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
GEMMA = {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
ATTENTION_IN_TURN = [[["global", "local", "global"], 1]]
CONFIGS: dict[str, dict] = {
    # norms before and after, scaled embedding, capped attention scores, sliding window
    "Gemma2": GEMMA,
    "Gemma3Text": GEMMA,
    # norms after attention and MLP only
    "Olmo2": {**LLAMA_LIKE, "num_key_value_heads": 4},
    # alternating global and local attention
    "GPTNeo": {
        **SMALL, "num_layers": LAYERS, "num_heads": 2, "intermediate_size": 40, "window_size": 4,
        "attention_types": ATTENTION_IN_TURN,
    },
    # biases on queries, keys and values
    "Qwen2": LLAMA_LIKE,
    # norms on queries and keys
    "Qwen3": {**LLAMA_LIKE, "head_dim": 8},
    # queries, keys and values from one matrix
    "Phi3": {**LLAMA_LIKE, "pad_token_id": 0, "original_max_position_embeddings": CONTEXT},
    # LayerNorms, biases, grouped heads
    "Starcoder2": LLAMA_LIKE,
    # attention and MLP in parallel after one norm; logits with a bias
    "Phi": {**LLAMA_LIKE, "num_key_value_heads": 4},
    "GPTJ": {
        "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 2,
        "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2,
    },
    # scaled logits
    "Cohere": LLAMA_LIKE,
    # scaled block outputs
    "Granite": {**LLAMA_LIKE, "residual_multiplier": 0.5},
    # MLP with its own residual connection
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": D_MODEL, "n_layer": LAYERS, "n_head": 2},
    # no module for the MLP
    "OPT": {
        **SMALL, "word_embed_proj_dim": D_MODEL, "ffn_dim": 40, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    },
}  # fmt: skip
CLASSES = {"Gemma3Text": "Gemma3"}


def save_tiny(name: str, folder: Path) -> Path:
    import transformers

    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    return _save(getattr(transformers, f"{CLASSES.get(name, name)}ForCausalLM"), config, folder / name, 0)


def load_any(name: str, folder: Path, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A tiny model with eager attention, which every architecture supports."""
    from transformers import AutoModelForCausalLM

    path = save_tiny(name, folder)
    module = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    return LanguageModel(module, find_anatomy(module.config))


def exact_norms(model: LanguageModel) -> None:
    """Make norms compute in float64; many cast to float32 internally."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name = type(self).__name__
        if "RMS" not in name:
            x = x - x.mean(-1, keepdim=True)
        # Olmo's norm has its epsilon in the call
        epsilon = getattr(self, "eps", None) or getattr(self, "variance_epsilon", 1e-5)
        gain = getattr(self, "weight", torch.ones(()).double()) + (1.0 if name.startswith("Gemma") else 0.0)
        return gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)

    for module in model.module.modules():
        if type(module).__name__.endswith(("Norm", "NormPre")) and not isinstance(module, torch.nn.LayerNorm):
            module.forward = types.MethodType(forward, module)


def linearize(model: LanguageModel, kind: str = "skip transcoder", **changes) -> LinearizedModel:
    made = make_dictionaries(model, kind, **changes).items()
    dictionaries = {layer: dictionary for layer, dictionary in made if layer < model.layers}
    return LinearizedModel(capture_pass(model, read_weights(model), PROMPT), dictionaries, BOS)


def largest_errors(linearized: LinearizedModel) -> tuple[float, float]:
    """Largest relative errors of the sums of direct effects and of direct sources against pre-activations."""
    features, full, one = linearized.features, [0.0], [0.0]
    for layer, dictionary in linearized.dictionaries.items():
        places = (features.layer == layer).nonzero()[:, 0]
        read = linearized.captured.layers[layer].input(dictionary)[features.position[places]]
        feature = features.feature[places]
        expected = (read * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        scale = expected.abs().clamp(min=1)
        effects = direct_effects(linearized, feature_targets(linearized, places))
        full += ((effects.sum(1) - expected).abs() / scale).tolist()
        for i in range(0, len(places), 7):
            sources = direct_sources(linearized, feature_reader(linearized, int(places[i])))
            total = float(sources.value.sum()) + sources.error + sources.constant
            one.append(abs(total - float(expected[i])) / float(scale[i]))
    assert len(full) > 50
    # torch's max propagates NaN
    return tuple(float(torch.tensor(errors).max()) for errors in (full, one))


def assert_frozen_ablations_equal_effects(
    linearized: LinearizedModel, targets: AttributionTargets, effects: torch.Tensor
) -> None:
    """Ablate every third feature and every fifth error alone, with everything else frozen."""
    columns = source_columns(linearized)
    nodes = torch.cat(
        [torch.arange(0, columns.active, 3), torch.arange(columns.errors.start, columns.errors.stop, 5)]
    )
    measured = ablate_frozen(linearized, nodes, [targets]).T
    scale = effects.abs().sum(1, keepdim=True).clamp(min=1)
    assert ((measured - effects[:, nodes]).abs() / scale).max() < 1e-9
    assert (effects[:, : columns.active].abs() > 1e-3).sum() > 20


TRACED = (
    "Gemma2",
    "Gemma3Text",
    "Olmo2",
    "GPTNeo",
    "Qwen2",
    "Qwen3",
    "Phi3",
    "Starcoder2",
    "Phi",
    "GPTJ",
    "Cohere",
    "Granite",
)


CHANGED = ("Gemma2", "Gemma3Text", "Olmo2", "Granite")
"""Models in which what the MLP adds differs from what it returns."""


PARALLEL = ("Phi", "GPTJ", "Cohere")
"""Models with attention and MLP in parallel, which have no resid_mid."""


@pytest.mark.parametrize(
    ("name", "site", "reads"),
    [
        *((name, "mlp_out", "mlp_in") for name in TRACED),
        *((name, "mlp_added", "mlp_in") for name in (*CHANGED, "Qwen2", "Cohere")),
        *((name, "mlp_out", "resid_mid") for name in TRACED if name not in PARALLEL),
        *((name, "mlp_added", "resid_mid") for name in CHANGED),
    ],
)
def test_sums_add_up_on_many_architectures(name, site, reads, tmp_path):
    model = load_any(name, tmp_path)
    exact_norms(model)
    for kind in ("skip transcoder", "cross-layer", "skip cross-layer"):
        linearized = linearize(model, kind, site_in=reads, site_out=site)
        full, one = largest_errors(linearized)
        assert full < 1e-9 and one < 1e-9
        logits = linearized.captured.logits()[[10, 4]]
        weights = torch.eye(VOCABULARY, dtype=torch.float64)[[30, 9]]
        targets = logit_targets(linearized, torch.tensor([10, 4]), weights)
        effects = direct_effects(linearized, targets)
        torch.testing.assert_close(effects.sum(1), logits[[0, 1], [30, 9]], atol=1e-9, rtol=1e-9)
        assert_frozen_ablations_equal_effects(linearized, targets, effects)


@pytest.mark.parametrize("name", ["Gemma3Text", "Olmo2", "Granite", "Qwen2"])
def test_features_that_read_resid_mid_are_encoded_from_the_model_s_own_stream(name, tmp_path):
    model = load_any(name, tmp_path, torch.float32)
    linearized = linearize(model, site_in="resid_mid")
    seen = capture(model, PROMPT[None], [Site("resid_mid", layer) for layer in range(model.layers)])
    for layer, dictionary in linearized.dictionaries.items():
        stream = seen[Site("resid_mid", layer)][0]
        assert torch.equal(linearized.captured.layers[layer].input(dictionary), stream)
        z = dictionary.encode(stream) * linearized.replaced[:, None]
        own = linearized.features.layer == layer
        position, feature = linearized.features.position[own], linearized.features.feature[own]
        assert len(position) == int((z > 0).sum()) > 10
        torch.testing.assert_close(linearized.features.activation[own], z[position, feature])
        # the gradient of a pre-activation in the stream is the encoder row
        targets = feature_targets(linearized, own.nonzero()[:, 0])
        assert torch.equal(targets.vector, dictionary.W_enc[feature])


def test_resid_mid_of_a_model_with_parallel_blocks_raises(tmp_path):
    model = load_tiny("neox", tmp_path)
    captured = capture_pass(model, read_weights(model), PROMPT)
    with pytest.raises(
        ValueError, match=r"layer 0: .*in parallel and has no resid_mid; name transcoders of mlp_in"
    ):
        LinearizedModel(captured, make_dictionaries(model, site_in="resid_mid"), BOS)


@pytest.mark.parametrize(
    "name",
    [name for name in TRACED if name != "Gemma2"],  # which caps its logits
)
def test_captured_logits_are_those_of_the_model_minus_their_mean(name, tmp_path):
    model = load_any(name, tmp_path)
    logits = model.logits(PROMPT[None])[0]
    captured = capture_pass(model, read_weights(model), PROMPT)
    torch.testing.assert_close(captured.logits(), logits - logits.mean(1, keepdim=True), atol=1e-5, rtol=0)


def test_probabilities_include_logit_softcapping(tmp_path):
    model = load_model(save_tiny("Gemma2", tmp_path), device="cpu")
    model.module.config.final_logit_softcapping = 0.05
    captured = capture_pass(model, read_weights(model), PROMPT)
    expected = model.logits(PROMPT[None])[0].softmax(-1)
    for position in (0, -1):
        torch.testing.assert_close(captured.probabilities(position), expected[position])
    torch.testing.assert_close(captured.most_likely(3)[0], expected.topk(3).values)
    assert (captured.logits().softmax(-1) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Cohere", "logit_scale", 0.3),
        ("Granite", "logits_scaling", 3.0),
        ("Gemma2", "final_logit_softcapping", 0.05),
        ("Phi", None, None),
    ],
)
def test_unembed_gives_the_model_s_logits(name, key, value, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, name, {**CONFIGS[name], **({key: value} if key else {})})
    model = load_model(save_tiny(name, tmp_path), device="cpu")
    site = Site("unembedding_in")
    hidden = capture(model, PROMPT[None], [site])[site]
    logits = model.logits(PROMPT[None])
    torch.testing.assert_close(model.unembed(hidden), logits)
    if key:
        # the key matters
        unscaled = model.module.get_submodule(model.anatomy.unembedding)(hidden)
        assert (unscaled - logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gelu", "solu_ln"])
def test_sums_add_up_on_models_in_transformer_lens_format(name, tmp_path):
    (tmp_path / "model").mkdir()
    legacy.convert(
        make_legacy(tmp_path / "given", act_fn=name), "NeelNanda/GELU_2L16W_test", tmp_path / "model"
    )
    model = load_model(tmp_path / "model", "float64", device="cpu")
    exact_norms(model)
    linearized = linearize(model)
    assert (
        linearized.captured.position_embedding is not None
        and linearized.captured.position_embedding.abs().max() > 0.1
    )
    full, one = largest_errors(linearized)
    assert full < 1e-9 and one < 1e-9
    logits = model.logits(PROMPT[None])[0]
    torch.testing.assert_close(
        linearized.captured.logits(), logits - logits.mean(1, keepdim=True), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("kind", ["transcoder", "one layer without"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_transcoder_of_mlp_added_writes_to_the_stream_without_a_norm(name, kind, tmp_path):
    model = load_model(save_tiny(name, tmp_path), device="cpu")
    linearized = linearize(model, kind, site_out="mlp_added")
    added = capture(model, PROMPT[None], [Site("mlp_added", layer) for layer in range(model.layers)])
    replaced = PROMPT != BOS
    for layer, dictionary in linearized.dictionaries.items():
        y = added[Site("mlp_added", layer)][0]
        y_hat = dictionary(linearized.captured.layers[layer].mlp_in)
        torch.testing.assert_close(linearized.errors[layer][replaced], (y - y_hat)[replaced])
        torch.testing.assert_close(linearized.errors[layer][~replaced], y[~replaced])
        torch.testing.assert_close(
            linearized.mlp_constant[layer], dictionary.b_dec * replaced[:, None], atol=0, rtol=0
        )
        # the direct effect on a logit is that of the decoder row in the final stream
        weights = torch.eye(VOCABULARY)[[30]]
        target = logit_targets(linearized, torch.tensor([10]), weights)
        effects = direct_effects(linearized, target)[0]
        if layer == model.layers - 1:
            active = linearized.active_at(layer, 10)
            written = linearized.feature_outputs(layer, active, layer)
            torch.testing.assert_close(effects[active], written @ target.vector[0])
    full, one = largest_errors(linearized)
    assert full < 1e-4 and one < 1e-4


@pytest.mark.parametrize("name", ["Gemma3Text", "Olmo2"])
def test_total_effects_add_up_with_transcoders_of_mlp_added(name, tmp_path):
    model = load_model(save_tiny(name, tmp_path), device="cpu")
    linearized = linearize(model, site_out="mlp_added")
    target = logit_targets(linearized, torch.tensor([10, 4]), torch.eye(VOCABULARY)[[30, 9]])
    effects = total_effects(linearized, target)[:, source_columns(linearized).errors.start :]
    torch.testing.assert_close(
        effects.sum(1), linearized.captured.logits()[[10, 4], [30, 9]], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["Gemma2", "GPTNeo", "GPTJ", "Qwen2", "Phi", "Olmo2"])
def test_models_are_loaded_and_traced(name, tmp_path):
    model = load_model(save_tiny(name, tmp_path), device="cpu")
    linearized = linearize(model, "transcoder")
    before = model.module.config._attn_implementation
    full, one = largest_errors(linearized)
    assert full < 1e-4 and one < 1e-4
    # the attention implementation is restored
    assert model.module.config._attn_implementation == before


def test_attention_patterns_are_zero_outside_the_window(tmp_path):
    captured = capture_pass(model := load_any("GPTNeo", tmp_path), read_weights(model), PROMPT)
    assert (captured.layers[0].pattern[:, 10] > 0).all()
    assert torch.equal(
        captured.layers[1].pattern[:, 10] > 0, torch.arange(len(PROMPT)).expand(2, -1) > 10 - 4
    )
    for layer in captured.layers:
        torch.testing.assert_close(
            layer.pattern.sum(-1), torch.ones(2, len(PROMPT)).double(), atol=1e-6, rtol=0
        )


def test_an_mlp_with_its_own_residual_connection_raises(tmp_path):
    model = load_any("Bloom", tmp_path)
    with pytest.raises(ValueError, match="BloomForCausalLM: its residual stream is not the sum"):
        capture_pass(model, read_weights(model), PROMPT)


def test_blocks_without_an_mlp_module_raise(tmp_path):
    with pytest.raises(ValueError, match="OPTForCausalLM"):
        model = load_model(save_tiny("OPT", tmp_path), device="cpu")
        capture_pass(model, read_weights(model), PROMPT)


def scale_block(block: torch.nn.Module, factor: float) -> None:
    """Scale what a block adds to the stream by `factor`."""

    def scale(_module, args, output):
        stream = output if isinstance(output, torch.Tensor) else output[0]
        changed = args[0] + factor * (stream - args[0])
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    block.register_forward_hook(scale)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("factor", [0.0, 0.9, 2.0])
def test_a_stream_that_is_not_the_sum_of_block_outputs_raises(architecture, factor, tmp_path):
    model = load_tiny(architecture, tmp_path)
    capture_pass(model, read_weights(model), PROMPT)
    scale_block(model.block(1), factor)
    with pytest.raises(ValueError, match="residual stream is not the sum of its blocks' outputs; choose"):
        capture_pass(model, read_weights(model), PROMPT)


def test_attention_without_a_pattern_raises(tmp_path):
    model = load_tiny("llama", tmp_path)
    model.attention(1).register_forward_hook(lambda _module, _args, output: (output[0], None))
    with pytest.raises(
        ValueError, match="LlamaForCausalLM: its attention returns no pattern; choose another"
    ):
        capture_pass(model, read_weights(model), PROMPT)


def test_attention_with_nonlinear_values_raises(tmp_path):
    model = load_tiny("llama", tmp_path)
    model.attention(1).v_proj.register_forward_hook(lambda _module, _args, output: output.relu())
    with pytest.raises(ValueError, match="LlamaForCausalLM: attention values are not an affine function"):
        read_weights(model)


def test_an_unknown_norm_raises(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    norm = model.norm(1, model.anatomy.norm_mlp)
    assert norm is not None
    norm.register_forward_hook(lambda _module, _args, output: output.tanh())
    with pytest.raises(ValueError, match="neither a LayerNorm nor an RMSNorm; choose another model"):
        read_weights(model)


def wider(dictionary: Dictionary) -> Dictionary:
    return replace(dictionary, W_enc=torch.randn(40, D_MODEL + 1))


def narrower(dictionary: Dictionary) -> Dictionary:
    d = D_MODEL - 8
    return replace(
        dictionary, W_enc=torch.randn(40, d), W_dec=torch.randn(40, d), b_dec=torch.randn(d), layer=0
    )


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        (
            1,
            lambda each: replace(each, site_in="mlp_out"),
            "layer 1: circuits go through transcoders.*mlp_out",
        ),
        (
            1,
            lambda each: replace(each, site_out="resid_mid"),
            "layer 1: circuits go .*mlp_in to\\s+resid_mid",
        ),
        (1, wider, f"layer 1: the dictionary reads {D_MODEL + 1} dimensions, the model has {D_MODEL}"),
        (0, narrower, f"layer 0: the dictionary reads {D_MODEL - 8} dimensions, the model has {D_MODEL}"),
        (LAYERS, lambda each: replace(each, layer=LAYERS), f"layer {LAYERS}: .*in each of {LAYERS} layers"),
    ],
    ids=["other input site", "other output site", "too wide", "too narrow", "no such layer"],
)
def test_dictionaries_that_do_not_fit_raise(
    layer: int, change: Callable[[Dictionary], Dictionary], message: str, tmp_path
):
    model = load_tiny("gpt2", tmp_path)
    dictionaries = make_dictionaries(model)
    dictionaries[layer] = change(dictionaries[min(layer, LAYERS - 1)])
    captured = capture_pass(model, read_weights(model), PROMPT)
    with pytest.raises(ValueError, match=message):
        LinearizedModel(captured, dictionaries, BOS)


def test_a_dictionary_with_too_wide_a_decoder_raises(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    captured = capture_pass(model, read_weights(model), PROMPT)
    wide = replace(make_dictionaries(model)[0], W_dec=torch.randn(40, 20), b_dec=torch.randn(20))
    with pytest.raises(ValueError, match="layer 0: the dictionary"):
        LinearizedModel(captured, {0: wide}, BOS)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
def test_embedding_and_position_embedding_are_those_of_the_tokens(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path, "float64")
    captured = capture_pass(model, read_weights(model), PROMPT)
    weight = model.module.get_submodule(model.anatomy.embedding).weight
    torch.testing.assert_close(captured.embedding, weight[PROMPT], atol=1e-12, rtol=0)
    assert (captured.position_embedding is not None) == (architecture == "gpt2")
    if captured.position_embedding is not None:
        learned = model.module.get_submodule(model.anatomy.positions).weight
        torch.testing.assert_close(captured.position_embedding, learned[: len(PROMPT)], atol=0, rtol=0)


def test_a_scaled_embedding_is_captured_as_it_enters_the_stream(tmp_path):
    model = load_any("Gemma2", tmp_path)
    weight = model.module.get_submodule(model.anatomy.embedding).weight
    captured = capture_pass(model, read_weights(model), PROMPT)
    torch.testing.assert_close(captured.embedding, D_MODEL**0.5 * weight[PROMPT], atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_a_token_with_zero_embedding_leaves_everything_finite(architecture, tmp_path):
    """Padding has a zero embedding; a centered norm maps constant embeddings to zero."""
    model = load_tiny(architecture, tmp_path)
    model.module.get_submodule(model.anatomy.embedding).weight.data[PROMPT[2]] = 0.0
    linearized = linearize(model)
    full, one = largest_errors(linearized)
    assert full < 1e-4 and one < 1e-4
