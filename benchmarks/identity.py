"""The identity table: largest error of a pre-activation against the sum of its sources, relative to max(1, |value|).

    python benchmarks/identity.py [MODEL_FOLDER]

Architecture x kind of dictionary x number format, in full (through all heads) and in one step (heads are sources), on
tiny random models, and on the model in MODEL_FOLDER with random dictionaries. Prints Markdown.
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
    print("| model | dictionaries | format | targets | in full | in one step |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for architecture in ARCHITECTURES:
            for kind in KINDS:
                for dtype in ("float64", "float32"):
                    local = make_linearized(load_tiny(architecture, Path(folder), dtype), kind)
                    print_row(f"tiny {architecture}", kind, dtype, local)
        for given in map(Path, sys.argv[1:]):
            for kind in KINDS:
                for dtype in ("float64", "float32"):
                    print_row(given.name, kind, dtype, real(given, kind, dtype))


def real(folder: Path, kind: str, dtype: str) -> LinearizedModel:
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


def print_row(model: str, kind: str, dtype: str, local: LinearizedModel) -> None:
    full, one = 0.0, 0.0
    for layer, dictionary in local.dictionaries.items():
        places = (local.features.layer == layer).nonzero()[:, 0]
        feature = local.features.feature[places]
        read = local.captured.layers[layer].mlp_in[local.features.position[places]]
        value = (read * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        sums = direct_effects(local, feature_targets(local, places)).sum(1)
        full = max(full, float(((sums - value).abs() / value.abs().clamp(min=1)).max()))
        for i in range(0, len(places), max(1, len(places) // 50)):
            step = direct_sources(local, feature_reader(local, int(places[i])))
            error = abs(float(step.value.sum()) + step.error + step.constant - float(value[i]))
            one = max(one, error / max(1.0, abs(float(value[i]))))
    print(f"| {model} | {kind} | {dtype} | {len(local.features)} | {full:.0e} | {one:.0e} |")


if __name__ == "__main__":
    main()
