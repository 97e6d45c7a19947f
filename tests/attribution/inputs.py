"""Prompts, dictionaries and roots that the tests of this stage share."""

from pathlib import Path

import torch
from tests.evaluation.inputs import BOS
from tests.models import D_MODEL, LAYERS, tiny_model

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.model import LanguageModel, load_model

PROMPT = torch.tensor([BOS, 9, 20, 31, 9, 44, 20, 17, 12, 60, 31])
KINDS = ("transcoder", "skip transcoder", "one layer without")


def load_tiny(architecture: str, folder: Path, dtype: str = "float32") -> LanguageModel:
    """A tiny random model; in float64 its RMSNorms compute in float64 too, which transformers' do not."""
    path = folder / architecture
    if not path.is_dir():
        tiny_model(architecture, path)
    model = load_model(path, dtype, device="cpu")
    if dtype == "float64":
        exact_norms(model)
    return model


def exact_norms(model: LanguageModel) -> None:
    """Let RMSNorms compute in the model's own number format: transformers' go through float32."""
    for module in model.module.modules():
        if type(module).__name__.endswith("RMSNorm"):

            def forward(x, module=module):
                epsilon = module.variance_epsilon
                return module.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))

            module.forward = forward


def make_dictionaries(model: LanguageModel, kind: str = "transcoder", **changes) -> dict[int, Dictionary]:
    """Random dictionaries for a tiny model's layers."""
    layers = [layer for layer in range(LAYERS) if not (kind == "one layer without" and layer == 1)]
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
    """The replacement model of a prompt."""
    captured = capture_pass(model, read_weights(model), token)
    return LinearizedModel(captured, make_dictionaries(model, kind, **changes), BOS)
