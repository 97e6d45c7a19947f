"""Largest difference between a pre-activation and the sum of its sources, relative to max(1, |value|).

    python benchmarks/identity.py [MODEL_FOLDER]

For each architecture, kind of dictionary and number format: direct effects through all heads, and direct sources,
where heads are sources of their own. Uses tiny random models, and the model in MODEL_FOLDER with random dictionaries.
Prints a Markdown table.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.attribution.inputs import KINDS, exact_norms, load_tiny, make_linearized
from tests.evaluation.inputs import BOS
from tests.models import ARCHITECTURES

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import direct_effects, feature_targets
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import direct_sources, feature_reader
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.model import load_model


def main() -> None:
    print(
        "| model | dictionaries | format | targets | direct effects | direct sources |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for architecture in ARCHITECTURES:
            for kind in KINDS:
                for dtype in ("float64", "float32"):
                    linearized = make_linearized(load_tiny(architecture, Path(folder), dtype), kind)
                    print_row(f"tiny {architecture}", kind, dtype, linearized)
        for real in map(Path, sys.argv[1:]):
            for kind in KINDS:
                for dtype in ("float64", "float32"):
                    print_row(real.name, kind, dtype, real_model(real, kind, dtype))


def real_model(folder: Path, kind: str, dtype: str) -> LinearizedModel:
    """A prompt of 64 random tokens through random dictionaries of 512 features, 16 active."""
    model = load_model(folder, dtype)
    if dtype == "float64":
        exact_norms(model)
    d = model.module.get_submodule(model.anatomy.unembedding).weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(3, 500, (64,), generator=generator)
    token[0] = BOS
    dictionaries = {}
    for layer in range(model.layers):
        if kind == "one layer without" and layer == 1:
            continue
        W_dec = torch.randn(512, d, generator=generator)
        dictionaries[layer] = Dictionary(
            torch.randn(512, d, generator=generator) / d**0.5,
            0.1 * torch.randn(512, generator=generator),
            W_dec / W_dec.norm(dim=1, keepdim=True),
            torch.randn(d, generator=generator) / 4,
            "topk",
            16,
            W_skip=torch.randn(d, d, generator=generator) / d if kind == "skip transcoder" else None,
            layer=layer,
        )
    return LinearizedModel(capture_pass(model, read_weights(model), token), dictionaries, BOS)


def print_row(model: str, kind: str, dtype: str, linearized: LinearizedModel) -> None:
    effects_error, sources_error = 0.0, 0.0
    for layer, dictionary in linearized.dictionaries.items():
        active = (linearized.features.layer == layer).nonzero()[:, 0]
        feature = linearized.features.feature[active]
        x = linearized.captured.layers[layer].mlp_in[linearized.features.position[active]]
        value = (x * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        sums = direct_effects(linearized, feature_targets(linearized, active)).sum(1)
        effects_error = max(effects_error, float(((sums - value).abs() / value.abs().clamp(min=1)).max()))
        for i in range(0, len(active), max(1, len(active) // 50)):
            sources = direct_sources(linearized, feature_reader(linearized, int(active[i])))
            error = abs(float(sources.value.sum()) + sources.error + sources.constant - float(value[i]))
            sources_error = max(sources_error, error / max(1.0, abs(float(value[i]))))
    print(
        f"| {model} | {kind} | {dtype} | {len(linearized.features)} | {effects_error:.0e} | {sources_error:.0e} |"
    )


if __name__ == "__main__":
    main()
