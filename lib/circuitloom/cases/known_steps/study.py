"""Do circuits name the steps of a computation? The steps are known, because the model's weights are set by hand."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...ablation.interventions import run_free
from ...activations.statistics import Moments, RowSums, moments
from ...attribution.capture import ModelWeights, capture_pass, read_weights
from ...attribution.direct_effects import logit_targets
from ...attribution.graph import Roots
from ...attribution.linearized_model import LinearizedModel
from ...config.cases.known_steps import KnownStepsCase
from ...config.dictionaries import Run
from ...core.progress import progress
from ...dictionaries.cross_layer import CrossLayerTranscoder
from ...dictionaries.training.cross_layer_trainer import CrossLayerTrainer, batch_key
from ...language_model.hooks import Site, capture
from ..case_report import CaseReport
from ..compare.full_graph import Flow, FullGraph, full_graph
from ..compare.measurements import FeatureSet, active_mask, measure_step
from .boolean_model import BOS, LAYERS, BooleanModel, make_boolean_model
from .report import KnownStepsResults, StepRow, TrainedGroup, make_report

STEPS = (0, 1)
"""Layers whose values are steps between the text and r."""


def study_known_steps(name: str, case: KnownStepsCase) -> CaseReport:
    """Returns the report of the case study `name`."""
    # 1. The model, and activations on all its texts
    boolean = make_boolean_model(case.across)
    rows = activation_rows(boolean)
    # 2. Train transcoders on the same batches, and trace all texts through each
    weights, trained, outcomes = read_weights(boolean.model), [], []
    with progress(f"cases: {name}", len(case.groups) * case.seeds, "runs") as bar:
        for group, reach in case.groups.items():
            for seed in range(case.seeds):
                transcoder = train(case.run_of(reach, seed), rows)
                trained.append(_fit(group, seed, transcoder, rows))
                features = matching_features(transcoder, boolean, rows, case.matching)
                outcomes += trace_steps(boolean, weights, group, seed, transcoder, features)
                bar.update(1)
    return make_report(KnownStepsResults(name, case, trained, outcomes))


@torch.inference_mode()
def activation_rows(boolean: BooleanModel) -> dict[str, Float[Tensor, "row d"]]:
    """Returns the MLPs' inputs and outputs at all positions of all texts without BOS, by `batch_key`."""
    sites = [Site(site, layer) for layer in range(LAYERS) for site in ("mlp_in", "mlp_out")]
    values = capture(boolean.model, boolean.token, sites)
    # the rows are used by autograd
    return {
        batch_key(site.name, site.layer): value[:, 1:].flatten(0, 1).clone() for site, value in values.items()
    }


def train(run: Run, rows: dict[str, Float[Tensor, "row d"]]) -> CrossLayerTranscoder:
    """Train on batches drawn from `rows` with replacement. All runs draw the same ones."""
    stored = {key: _moments(value) for key, value in rows.items()}
    trainer = CrossLayerTrainer(run, range(LAYERS), stored, rows)
    generator = torch.Generator().manual_seed(0)
    for index in range(trainer.steps):
        drawn = torch.randint(len(next(iter(rows.values()))), (run.batch,), generator=generator)
        trainer.train_on(index, {key: value[drawn] for key, value in rows.items()})
    trainer.check()
    return trainer.transcoder()


def _moments(value: Float[Tensor, "row d"]) -> Moments:
    sums = RowSums.zeros(1, value.shape[1])
    sums.add(0, value)
    return moments(sums, 0, len(value))


@torch.inference_mode()
def _fit(
    group: str, seed: int, transcoder: CrossLayerTranscoder, rows: dict[str, Float[Tensor, "row d"]]
) -> TrainedGroup:
    xs, ys = ({i: rows[batch_key(site, i)] for i in range(LAYERS)} for site in ("mlp_in", "mlp_out"))
    zs, y_hat = transcoder.encode(xs), transcoder.reconstruct(xs)
    fvu = [
        float((ys[i] - y_hat[i]).square().sum() / (ys[i] - ys[i].mean(0)).square().sum())
        for i in range(LAYERS)
    ]
    l0 = [float((zs[i] > 0).sum(1).double().mean()) for i in range(LAYERS)]
    return TrainedGroup(group, seed, tuple(fvu), tuple(l0))


@torch.inference_mode()
def matching_features(
    transcoder: CrossLayerTranscoder,
    boolean: BooleanModel,
    rows: dict[str, Float[Tensor, "row d"]],
    least: float,
) -> dict[tuple[int, str], set[int]]:
    """Maps (layer, name of a value) to the features of this layer that tell the value with an F1 of at least `least`,
    at the best threshold."""
    found = {}
    for layer, dictionary in transcoder.layers.items():
        z = dictionary.encode(rows[batch_key("mlp_in", layer)])
        for (_, name), truth in boolean.steps.items():
            score = best_f1(z, truth[:, 1:].flatten())
            found[layer, name] = set((score >= least).nonzero()[:, 0].tolist())
    return found


def best_f1(z: Float[Tensor, "row feature"], truth: Bool[Tensor, " row"]) -> Float[Tensor, " feature"]:
    """Returns the largest F1 of [z > threshold] over all thresholds >= 0, for each feature."""
    value, order = z.sort(dim=0, descending=True, stable=True)
    hits = truth[order].cumsum(0)
    predicted = torch.arange(1, len(z) + 1)[:, None]
    f1 = 2 * hits / (predicted + truth.sum())
    # a threshold lies between two different values, or between a positive one and 0
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    return f1.where((value > following.clamp(min=0)) & (value > 0), 0.0).amax(0)


@torch.inference_mode()
def trace_steps(
    boolean: BooleanModel,
    weights: ModelWeights,
    group: str,
    seed: int,
    transcoder: CrossLayerTranscoder,
    features: dict[tuple[int, str], set[int]],
) -> Iterator[StepRow]:
    """Yields one row per step of each text on which one q is true."""
    for pair in range(2):
        for text in boolean.texts(pair).tolist():
            captured = capture_pass(boolean.model, weights, boolean.token[text])
            model = LinearizedModel(captured, transcoder.layers, BOS)
            vocabulary = model.captured.unembedding.weight.shape[0]
            answer = torch.zeros(1, vocabulary)
            answer[0, boolean.answer] = 1
            targets = logit_targets(model, torch.tensor([len(captured) - 1]), answer)
            graph = full_graph(model, Roots(targets, torch.ones(1)))
            [before] = run_free(boolean.model, model, 1, {}, [targets])
            for layer in STEPS:
                names = boolean.names(pair, layer)
                # one value at one position is ablated: `and` is false without either, so effects do not add up
                ablation = boolean.ablation(layer, names[0])
                [after] = run_free(boolean.model, model, 1, ablation, [targets])
                earlier = {own: _telling(features, own, names) for own in range(layer)}
                yield StepRow(
                    group,
                    seed,
                    text,
                    layer,
                    " ".join(names),
                    _flow(graph, {layer: _telling(features, layer, names)}).through,
                    _flow(graph, earlier).through,
                    _flow(graph, {layer: set(range(transcoder.layers[layer].width))}).around,
                    measure_step(boolean.model, graph, {layer: features[layer, names[0]]}, len(captured) - 1),
                    float(before - after),
                )


def _telling(features: dict[tuple[int, str], set[int]], layer: int, names: Sequence[str]) -> set[int]:
    """Returns the features of a layer that tell one of some values."""
    return set().union(*(features[layer, name] for name in names))


def _flow(graph: FullGraph, features: FeatureSet) -> Flow:
    return graph.flow(active_mask(graph.model, features))
