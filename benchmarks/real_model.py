"""Checks attribution through a study's transcoders on prompts of its held-out text, with the model's own modules.

    python benchmarks/real_model.py results/STUDY [RUN] [LENGTH ...]

For prompts of 16, 64 and 256 tokens: the largest error of the identity (sums of direct effects against
pre-activations), of frozen ablations (against direct effects), and for the shortest prompt of direct effects against
autograd. Errors are relative to max(1, |value|). The identity's median and its largest error relative to the sum of
|effect| tell errors from cancellation: in float32, 6e-8 of this sum is the rounding of its largest terms. Prints a
Markdown table.
"""

import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.attribution.autograd import by_autograd, run_frozen

from circuitloom.ablation.interventions import ablate_frozen
from circuitloom.attribution.capture import capture_pass
from circuitloom.attribution.direct_effects import direct_effects, feature_targets, source_columns
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.tracer import Tracer, open_tracer
from circuitloom.core.layout import Layout
from circuitloom.core.tables import read_table

LENGTHS = (16, 64, 256)
TARGETS, SOURCES = 500, 100
"""Number of targets and of ablated sources, drawn at random. The shortest prompt has all targets."""
REFERENCE_TARGETS = 50


def main() -> None:
    folder, *rest = sys.argv[1:]
    run = next((each for each in rest if not each.isdigit()), None)
    lengths = [int(each) for each in rest if each.isdigit()] or LENGTHS
    tracer = open_tracer(folder, run)
    print(f"run {tracer.run}\n")
    print(
        "| tokens | active features | targets | identity | its median | relative to the sum of absolute effects | "
        "frozen ablations | autograd | seconds |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for length in lengths:
        print_row(tracer, prompt(folder, tracer, length), every=length == min(lengths))


def prompt(folder: str, tracer: Tracer, length: int) -> torch.Tensor:
    """The first tokens of the first held-out document that has enough of them, after a BOS."""
    table = read_table(Layout(Path(folder)).corpus_table("document"), pc.field("split") == "validation")
    for text in table["text"].to_pylist():
        [token] = tracer.tokenizer.encode([text])
        if len(token) >= length:
            first = [] if tracer.tokenizer.bos_id is None else [tracer.tokenizer.bos_id]
            return torch.tensor([*first, *token.tolist()][:length])
    raise SystemExit(f"no held-out document has {length} tokens")


@torch.inference_mode()
def print_row(tracer: Tracer, token: torch.Tensor, every: bool) -> None:
    started = time.perf_counter()
    captured = capture_pass(tracer.language_model, tracer.weights, token)
    model = LinearizedModel(captured, tracer.dictionaries, tracer.tokenizer.separator_id)
    features, generator = model.features, torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(features), generator=generator)[: None if every else TARGETS].sort().values
    columns = source_columns(model)
    ablated = torch.randperm(columns.embeddings.stop, generator=generator)[:SOURCES]
    frozen, errors, shares = 0.0, [], []
    groups = [chosen[features.layer[chosen] == layer] for layer in features.layer[chosen].unique()]
    targets = [feature_targets(model, group) for group in groups]
    sampled = [target[:: max(1, len(chosen) // TARGETS)] for target in targets]
    measured = ablate_frozen(model, ablated, sampled).split([len(each) for each in sampled], 1)
    for group, target, drop in zip(groups, targets, measured, strict=True):
        dictionary = tracer.dictionaries[int(features.layer[group[0]])]
        x = captured.layers[dictionary.layer].mlp_in[features.position[group]]
        feature = features.feature[group]
        value = (x * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        effects = direct_effects(model, target)
        scale = value.abs().clamp(min=1)
        error = (effects.double().sum(1) - value).abs()
        errors.append(error / scale)
        shares.append(error / effects.abs().sum(1))
        rows = effects[:: max(1, len(chosen) // TARGETS)][:, ablated].T
        frozen = max(frozen, float(((rows - drop).abs() / scale[:: max(1, len(chosen) // TARGETS)]).max()))
    identity = torch.cat(errors)
    reference = f"{autograd_error(tracer, model, token, chosen):.0e}" if every else ""
    seconds = time.perf_counter() - started
    print(
        f"| {len(token)} | {len(features)} | {len(chosen)} | {identity.max():.1e} | {identity.median():.1e} | "
        f"{torch.cat(shares).max():.1e} | {frozen:.1e} | {reference} | {seconds:.0f} |",
        flush=True,
    )


def autograd_error(
    tracer: Tracer, model: LinearizedModel, token: torch.Tensor, chosen: torch.Tensor
) -> float:
    features, error = model.features, 0.0
    with torch.inference_mode(False):
        leaves = run_frozen(tracer.language_model, tracer.dictionaries, token)
        for active in chosen[:: max(1, len(chosen) // REFERENCE_TARGETS)].tolist():
            layer, position = int(features.layer[active]), features.position[active]
            pre = leaves.pre[layer][position, features.feature[active]]
            expected = by_autograd(model, leaves, pre)
            effects = direct_effects(model, feature_targets(model, torch.tensor([active])))[0]
            error = max(error, float((effects - expected).abs().max() / pre.detach().abs().clamp(min=1)))
    return error


if __name__ == "__main__":
    main()
