"""Prompts, tiny models, dictionaries and readers for the tests of attribution."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.architectures import tiny_architecture
from tests.evaluation.inputs import BOS
from tests.models import ARCHITECTURES, CONTEXT, D_MODEL, LAYERS, VOCABULARY, _save, tiny_model

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import logit_targets
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import (
    HEAD,
    PathGraph,
    Paths,
    SourceDecomposition,
    StreamReader,
    head_reader,
    target_reader,
)
from circuitloom.config.dictionaries import output_layers
from circuitloom.dictionaries.cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    LayerDictionary,
)
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.model import LanguageModel, load_model

PROMPT = torch.tensor([BOS, 9, 20, 31, 9, 44, 20, 17, 12, 60, 31])
BROKEN = PROMPT.clone()
BROKEN[4] = BOS
"""The prompt with a BOS in its middle."""
KINDS = (
    "transcoder",
    "skip transcoder",
    "one layer without",
    "cross-layer",
    "skip cross-layer",
    "cross-layer, one layer without",
)
"""Kinds of sets of dictionaries. The last ones are cross-layer transcoders."""
READING = [*((name, "mlp_in") for name in ARCHITECTURES), ("gpt2", "resid_mid"), ("llama", "resid_mid")]
"""Tiny models with the site that transcoders read. Blocks of `neox` are parallel and have no resid_mid."""
Key = tuple[int, int, int, int]
"""Kind, layer, index and position of a source or node."""


def load_tiny(architecture: str, folder: Path, dtype: str = "float32") -> LanguageModel:
    """A tiny random model, one of `ARCHITECTURES` or by model_type. In float64, RMSNorms of `ARCHITECTURES` compute in
    float64 too."""
    path = folder / architecture
    if not path.is_dir():
        make = tiny_model if architecture in ARCHITECTURES else tiny_architecture
        make(architecture, path)
    model = load_copy(path, dtype)
    if dtype == "float64":
        exact_norms(model)
    return model


_loaded: dict[tuple[str, str], LanguageModel] = {}


def load_copy(path: Path, dtype: str = "float32") -> LanguageModel:
    """A model of its own; a process reads equal files once."""
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(), dtype
    if key not in _loaded:
        _loaded[key] = load_model(path, dtype, device="cpu")
    return copy.deepcopy(_loaded[key])


def load_gemma(folder: Path) -> LanguageModel:
    """Tiny Gemma 3: norms before and after attention and MLP, embedding scaled by sqrt(d), grouped heads."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=D_MODEL, intermediate_size=40,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    path = folder / "gemma"
    return load_copy(path if path.is_dir() else _save(Gemma3ForCausalLM, config, path, 0))


def exact_norms(model: LanguageModel) -> None:
    """Make RMSNorms compute in the model's dtype; those of transformers cast to float32."""
    for module in model.module.modules():
        if type(module).__name__.endswith("RMSNorm"):

            def forward(x, module=module):
                epsilon = module.variance_epsilon
                return module.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))

            module.forward = forward


def make_cross_layer(
    skip: bool = False,
    reach: int | None = None,
    layers: Sequence[int] = range(LAYERS),
    seed: int = 0,
    **changes,
) -> CrossLayerTranscoder:
    """A random cross-layer transcoder for a tiny model. Rows to later layers are as long as those to the own layer."""
    made = []
    for layer in layers:
        generator = torch.Generator().manual_seed(100 * seed + layer + 7)
        outputs = tuple(output_layers(layers, layer, reach))
        W_dec = torch.randn(40, len(outputs), D_MODEL, generator=generator)
        own: dict = {
            "W_enc": torch.randn(40, D_MODEL, generator=generator) / D_MODEL**0.5,
            "b_enc": 0.1 * torch.randn(40, generator=generator),
            "W_dec": W_dec / W_dec.norm(dim=2, keepdim=True),
            "b_dec": torch.randn(D_MODEL, generator=generator) / 4,
            "W_skip": 0.2 * torch.randn(D_MODEL, D_MODEL, generator=generator) if skip else None,
            "act": "topk", "k": 4, "layer": layer, "outputs": outputs, "scales": (1.0,) * len(outputs),
        }  # fmt: skip
        made.append(CrossLayerDictionary(**{**own, **changes}))
    return CrossLayerTranscoder(made)


def decoder_rows(dictionary: LayerDictionary, feature: int) -> dict[int, torch.Tensor]:
    """Decoder row of a feature for each layer that it writes to."""
    if isinstance(dictionary, Dictionary):
        return {dictionary.layer: dictionary.W_dec[feature]}
    return {output: dictionary.W_dec[feature, i] for i, output in enumerate(dictionary.outputs)}


def make_dictionaries(model: LanguageModel | None, kind: str = "transcoder", **changes) -> dict[int, Any]:
    """Random dictionaries for a tiny model's layers."""
    layers = [layer for layer in range(LAYERS) if not ("one layer without" in kind and layer == 1)]
    if "cross-layer" in kind:
        # with skip connections, features write to their own layer and the next one
        skip = "skip" in kind
        return make_cross_layer(skip, 1 if skip else None, layers, **changes).layers
    made = {}
    for layer in layers:
        generator = torch.Generator().manual_seed(layer)
        skip = 0.2 * torch.randn(D_MODEL, D_MODEL, generator=generator)
        extra = {"W_skip": skip} if kind == "skip transcoder" else {}
        W_dec = torch.randn(40, D_MODEL, generator=generator)
        made[layer] = Dictionary(
            W_enc=torch.randn(40, D_MODEL, generator=generator) / D_MODEL**0.5,
            b_enc=0.1 * torch.randn(40, generator=generator),
            W_dec=W_dec / W_dec.norm(dim=1, keepdim=True),
            b_dec=torch.randn(D_MODEL, generator=generator) / 4,
            **({"act": "topk", "k": 4, "layer": layer} | extra | changes),
        )
    return made


def make_linearized(
    model: LanguageModel, kind: str = "transcoder", token: torch.Tensor = PROMPT, **changes
) -> LinearizedModel:
    """Linearized model of a prompt."""
    captured = capture_pass(model, read_weights(model), token)
    return LinearizedModel(captured, make_dictionaries(model, kind, **changes), BOS)


def node_key(nodes: SourceDecomposition | Paths | PathGraph, i: int) -> Key:
    """Kind, layer, index and position of the i-th source or node."""
    return int(nodes.kind[i]), int(nodes.layer[i]), int(nodes.index[i]), int(nodes.position[i])


def through_head(
    linearized: LinearizedModel, reader: StreamReader, step: SourceDecomposition, i: int
) -> StreamReader:
    """Reader of the input of the i-th source, a head."""
    assert int(step.kind[i]) == HEAD
    return head_reader(linearized, reader, int(step.layer[i]), int(step.index[i]), int(step.position[i]))


def logit_reader(linearized: LinearizedModel, position: int, token: int = 10) -> StreamReader:
    """A logit at a position as a reader."""
    weights = torch.eye(VOCABULARY, dtype=linearized.captured.resid_final.dtype)[[token]]
    return target_reader(linearized, logit_targets(linearized, torch.tensor([position]), weights))
