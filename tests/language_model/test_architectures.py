"""Tiny models of every architecture in the table run, and are built as the table says; all others are refused."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.architectures import NAMES, VARIANTS, tiny_architecture, tiny_config
from tests.attribution.inputs import PROMPT
from tests.attribution.test_architectures import largest_errors, linearize

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.config.architectures import ARCHITECTURES, FOUR_TIMES, MULTIMODAL, REFUSED, find_architecture
from circuitloom.config.language_model import ModelFolder
from circuitloom.config.model_shape import ModelShape, read_shape, shape_of
from circuitloom.language_model.hooks import Site, capture, edited, observed_modules
from circuitloom.language_model.lm_head import find_lm_head
from circuitloom.language_model.model import LanguageModel, load_model

TOKENS = PROMPT[None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Returns a function that loads a tiny model by name, once."""

    @cache
    def load(name: str) -> LanguageModel:
        return load_model(tiny_architecture(name, tmp_path_factory.mktemp("models") / name), device="cpu")

    return load


def sites(model: LanguageModel, name: str) -> list[Site]:
    return [Site(name, layer) for layer in range(model.layers)]


CHANGED = {"exaone4", "gemma2", "gemma3_text", "glm4", "granite", "olmo2", "olmo3"}
"""Architectures that change the MLP's output before they add it: by a norm, or by a residual multiplier."""


@pytest.mark.parametrize("name", NAMES)
def test_captured_sites_are_the_model_s_own(name: str, tiny) -> None:
    model = tiny(name)
    streams = model.module(TOKENS, output_hidden_states=True).hidden_states
    pre, read, neurons, out, added, attention_added = (
        capture(model, TOKENS, sites(model, site))
        for site in ("resid_pre", "mlp_in", "neurons", "mlp_out", "mlp_added", "attn_added")
    )
    attended = {}
    with observed_modules(
        {layer: model.attention(layer) for layer in range(model.layers)},
        lambda layer, _args, _kwargs, output: attended.update({layer: output[0].clone()}),
    ):
        model.logits(TOKENS)
    assert model.changes_mlp_out == (name in CHANGED)
    for layer in range(model.layers):
        torch.testing.assert_close(pre[Site("resid_pre", layer)], streams[layer])
        x, y = read[Site("mlp_in", layer)], out[Site("mlp_out", layer)]
        torch.testing.assert_close(model.mlp(layer)(x), y, atol=1e-5, rtol=1e-5)
        to_stream = added[Site("mlp_added", layer)]
        torch.testing.assert_close(model.map_to("mlp_added", layer)(x), to_stream, atol=1e-5, rtol=1e-5)
        assert torch.equal(to_stream, y) == (name not in CHANGED)
        projection = model.mlp(layer).get_submodule(model.anatomy.mlp_projection)
        torch.testing.assert_close(projection(neurons[Site("neurons", layer)]), y, atol=1e-5, rtol=1e-5)
    mid = {} if model.anatomy.parallel else capture(model, TOKENS, sites(model, "resid_mid"))
    for layer in range(model.layers):
        by_attention = attention_added[Site("attn_added", layer)]
        if mid:
            by_attention = pre[Site("resid_pre", layer)] + by_attention
        expected = mid[Site("resid_mid", layer)] if mid else attended[layer]
        torch.testing.assert_close(by_attention, expected, atol=1e-5, rtol=1e-5)
    for layer in range(model.layers - 1):
        before = pre[Site("resid_pre", layer)] + attended[layer] if not mid else mid[Site("resid_mid", layer)]
        expected = before + added[Site("mlp_added", layer)]
        torch.testing.assert_close(pre[Site("resid_pre", layer + 1)], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_attribution_adds_up(name: str, tiny) -> None:
    model = tiny(name)
    # in float32, random weights lose up to 2e-4 by rounding (EXAONE 4); many norms compute in float32 all the same, and
    # lose up to 3e-5 (Gemma 3, depending on the processor)
    double = LanguageModel(deepcopy(model.module).double(), model.anatomy)
    full, one = largest_errors(linearize(double, "skip transcoder"))
    assert full < 1e-4 and one < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_unembedding_gives_the_model_s_logits(name: str, tiny) -> None:
    model = tiny(name)
    logits = model.logits(TOKENS)
    if not getattr(model.module.config, "final_logit_softcapping", None):
        captured = capture_pass(model, read_weights(model), PROMPT).logits()
        expected = logits[0] - logits[0].mean(1, keepdim=True)
        torch.testing.assert_close(captured, expected, atol=1e-4, rtol=1e-4)
    hidden = capture(model, TOKENS, [Site("unembedding_in")])[Site("unembedding_in")]
    torch.testing.assert_close(model.unembed(hidden), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.unembed(hidden, slice(7, 40)), logits[..., 7:40], atol=1e-5, rtol=1e-5)
    chosen = torch.tensor([40, 2])
    torch.testing.assert_close(model.unembed(hidden, chosen), logits[..., chosen], atol=1e-5, rtol=1e-5)
    assert find_lm_head(model).divisible


def is_gated(model: LanguageModel) -> bool:
    """Whether more matrices of the MLP read its input than one, or one that is twice as wide as the neurons."""
    mlp = model.mlp(0)
    width = mlp.get_submodule(model.anatomy.mlp_projection)
    read = [p.numel() for name, p in mlp.named_parameters() if p.dim() == 2]
    return sum(read) / max(p.numel() for p in width.parameters()) > 2.5


def is_parallel(model: LanguageModel) -> bool:
    """Whether the MLP's input in layer 0 does not depend on the attention of layer 0."""
    site = Site("mlp_in", 0)
    before = capture(model, TOKENS, [site])[site]
    with edited(model, {Site("heads", 0): lambda _x, y: torch.zeros_like(y)}):
        return torch.equal(capture(model, TOKENS, [site])[site], before)


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_read_from_the_config_is_that_of_the_modules(name: str, tiny) -> None:
    model = tiny(name)
    folder = Path(model.module.config._name_or_path)
    shape = read_shape(ModelFolder(source="path", path=str(folder)), 8)
    projection = model.mlp(0).get_submodule(model.anatomy.mlp_projection)
    embedding = model.module.get_submodule(model.anatomy.embedding)
    neurons = capture(model, TOKENS, [Site("neurons", 0)])[Site("neurons", 0)]
    heads = capture(model, TOKENS, [Site("heads", 0)])[Site("heads", 0)]
    assert isinstance(projection, torch.nn.Module)
    assert (shape.vocabulary, shape.d_model) == tuple(embedding.weight.shape)
    assert (shape.layers, shape.d_mlp) == (model.layers, neurons.shape[-1])
    assert (shape.heads, shape.attention_width) == (model.anatomy.heads, heads.shape[-1])
    assert shape.context == 32
    assert (shape.gated, shape.parallel) == (is_gated(model), is_parallel(model))
    assert shape.parallel == model.anatomy.parallel
    unembedding = model.module.get_submodule(model.anatomy.unembedding)
    assert shape.tied == (unembedding.weight.data_ptr() == embedding.weight.data_ptr())


LARGER = {
    "vocab_size": 1000, "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
    "intermediate_size": 2048, "num_key_value_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Sizes at which matrices outweigh norms and biases. The width of a head is each architecture's own."""


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_is_right_within_three_percent(name: str) -> None:
    from transformers import AutoModelForCausalLM

    own = {"gpt_neo": {"attention_types": [[["global", "local"], 1]]}, "hunyuan_v1_dense": {"head_dim": 64}}
    config = tiny_config(name, LARGER | own.get(name, {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    real = sum(p.numel() for p in model.parameters())
    assert shape_of(config.to_dict() | {"model_type": config.model_type}).parameters == pytest.approx(
        real, rel=0.03
    )


def test_every_architecture_that_transformer_lens_names_is_in_the_table() -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    mappings = [value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    kinds = {
        kind
        for mapping in mappings
        for kind, names in mapping.items()
        for each in ([names] if isinstance(names, str) else names)
        # gpt-sw3 is another name of gpt2
        if each in SUPPORTED_ARCHITECTURES
        and kind in CONFIG_MAPPING
        and CONFIG_MAPPING[kind].model_type == kind
    }
    refused = [kind for kinds in REFUSED.values() for kind in kinds]
    table = [*ARCHITECTURES, *MULTIMODAL, *refused]
    assert len(kinds) > 80 and len(ARCHITECTURES) >= 25
    assert kinds - set(table) == set()
    assert len(set(table)) == len(table)


@pytest.mark.parametrize(
    ("reason", "kind"), [(reason, kind) for reason in REFUSED for kind in REFUSED[reason]]
)
def test_what_does_not_run_is_refused_from_the_config_alone(reason: str, kind: str) -> None:
    with pytest.raises(ValueError, match=kind) as error:
        shape_of({"model_type": kind, "architectures": ["X"]})
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.json has no model_type; is it a language model's"),
        (
            {"model_type": "mine"},
            "mine models do not run: TransformerLens does not name their modules; choose another",
        ),
        (
            {"model_type": "qwen", "auto_map": {"AutoConfig": "x.Y"}},
            "downloaded code is never run; choose another",
        ),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
            r"its weights are quantized \(gptq\); name the model with its original weights",
        ),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "gemma3_text models with use_bidirec",
        ),
        ({"model_type": "falcon", "alibi": True}, "falcon models with alibi do not run; choose another"),
        ({"model_type": "olmo", "clip_qkv": 8.0}, "olmo models with clip_qkv do not run; choose another"),
        ({"d_model": 8, "n_ctx": 8, "attn_only": True}, "it has attention only and no MLP"),
        (
            {"model_type": "llama", "num_attention_heads": "many"},
            "'many' for num_attention_heads; a whole number",
        ),
        (
            {"model_type": "llama", "num_hidden_layers": "5"},
            "states '5' for num_hidden_layers; a whole number above",
        ),
        (
            {"model_type": "llama", "num_hidden_layers": -1},
            "states -1 for num_hidden_layers; a whole number above 0",
        ),
        ({"model_type": "llama", "hidden_size": 64.5}, "states 64.5 for hidden_size; a whole number above 0"),
        ({"model_type": "llama", "num_key_value_heads": "x"}, "num_key_value_heads.* 'x'"),
        ({"model_type": "llama", "head_dim": -4}, "states -4 for head_dim; a whole number above 0"),
        ({"model_type": "falcon", "hidden_size": 64, "bias": [3]}, "does not accept this config.json"),
    ],
)
def test_other_configs_are_refused_in_one_line(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        shape_of(config)
    assert "\n" not in str(error.value)


def test_a_size_that_the_config_does_not_state_is_the_default_of_the_config_class() -> None:
    # the hub's config of Falcon 7B states no context and no width of the MLP
    config = {
        "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
        "vocab_size": 65024, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False,
    }  # fmt: skip
    expected = ModelShape(
        layers=32, d_model=4544, d_mlp=4 * 4544, heads=71, context=2048, vocabulary=65024, parallel=True,
        key_value_heads=1, tied=True,
    )  # fmt: skip
    assert shape_of(config) == expected
    assert expected.parameters == pytest.approx(6.92e9, rel=0.01)


def test_the_width_of_the_mlp_is_that_of_the_config_class_or_four_times_d_model() -> None:
    from transformers import AutoConfig

    for kind in ARCHITECTURES:
        own = AutoConfig.for_model(kind).get_text_config(decoder=True)
        stated = [getattr(own, name, None) for name in ("n_inner", "intermediate_size", "ffn_hidden_size")]
        # the class of Falcon computes its default
        assert (not any(stated) or kind == "falcon") == (kind in FOUR_TIMES), kind
    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    assert shape_of({"model_type": "llama", "max_position_embeddings": 16, **sizes}).d_mlp == 11_008


def test_published_sizes_give_the_published_numbers_of_parameters() -> None:
    gemma = {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 8192,
        "vocab_size": 256000, "hidden_act": "gelu",
    }  # fmt: skip
    neo = {
        "model_type": "gpt_neo", "hidden_size": 768, "num_layers": 4, "num_heads": 16, "intermediate_size": None,
        "max_position_embeddings": 2048, "vocab_size": 50257,
    }  # fmt: skip
    shape = shape_of(gemma)
    assert shape.gated and shape.parameters == pytest.approx(2.506e9, rel=0.001)
    assert (shape.head_dim, shape.key_value_heads, shape.attention_width) == (0, 1, 2048)
    shape = shape_of(neo)
    assert (shape.layers, shape.heads, shape.context, shape.d_mlp) == (4, 16, 2048, 3072)
    assert shape.parameters == pytest.approx(68.5e6, rel=0.03)


def test_the_sizes_of_a_multimodal_model_are_those_of_its_text_model() -> None:
    # as the hub's config of Gemma 3 4B: heads, head width and vocabulary are defaults of the config class
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
    }
    shape = shape_of({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert (shape.layers, shape.d_model, shape.d_mlp, shape.heads, shape.head_dim) == (
        34,
        2560,
        10240,
        8,
        256,
    )
    assert (shape.key_value_heads, shape.vocabulary, shape.gated, shape.tied) == (4, 262208, True, True)
    assert shape.parameters == pytest.approx(3.88e9, rel=0.01)


def test_a_multimodal_model_whose_text_model_does_not_run_is_refused() -> None:
    text = {"model_type": "mixtral", "hidden_size": 16, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="mixtral models do not run: its MLPs route each token"):
        shape_of({"model_type": "llava", "text_config": text})


def test_variants_are_of_architectures_in_the_table() -> None:
    assert {kind for kind, _ in VARIANTS.values()} <= set(ARCHITECTURES)
    assert find_architecture({"model_type": "gpt2"}) is ARCHITECTURES["gpt2"]
    assert replace(ARCHITECTURES["gpt2"]).is_parallel({}) is False
