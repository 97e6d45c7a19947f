"""Benchmarks all dictionaries of a study: core metrics, sparse probing, absorption, and stability between seeds.

`benchmark_rows` yields the rows of the table `dictionary_benchmark`, one layer after the other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.layout import NEURONS, RANDOM, RESIDUAL
from ..core.progress import announce, progress
from ..dictionaries.cross_layer import LayerDictionary
from ..dictionaries.dictionary import Dictionary
from ..language_model.batches import Batch
from ..language_model.hooks import Site
from ..language_model.model import LanguageModel
from .absorption import NestedPair, measure_absorption, nested_pairs
from .concept_matching import scored_activations, sparse_activations
from .concepts import ConceptAnnotations, SparseActivations
from .core_metrics import CoreSums, core_metrics, measure_core
from .held_out import HeldOut
from .probing import (
    ProbeInputs,
    ProbeTasks,
    Score,
    dense_probe_scores,
    interval,
    make_tasks,
    sparse_probe_scores,
)
from .stability import compare_features, seed_pairs

KS = (1, 2, 5)
"""Numbers of features that probes read, as in SAEBench."""
LEAST = 30
"""Least number of tokens with a label, and without it, in each half of the documents."""
PLANTED, TEXT, DOCUMENT = "planted", "text", "document"
"""Groups of tasks."""

Row = dict[str, Any]
Runs = Mapping[str, Mapping[int, LayerDictionary]]
"""Dictionaries by run and layer."""


def planted_labels(annotations: ConceptAnnotations) -> dict[str, Bool[Tensor, " token"]]:
    """Returns the labels of the scored tokens, by concept."""
    token = torch.repeat_interleave(torch.arange(len(annotations.choosing)), annotations.start.diff())
    label = torch.zeros(len(annotations.names) + 1, len(annotations.choosing), dtype=torch.bool)
    label[annotations.concept, token] = True
    return dict(zip(annotations.names, label[:-1], strict=True))


@dataclass(frozen=True)
class BenchmarkInputs:
    """What dictionaries are benchmarked on."""

    model: LanguageModel
    held_out: HeldOut
    labels: Mapping[str, Mapping[str, Bool[Tensor, " token"]]]
    """Labels of the scored tokens by group of tasks and name. Absorption is measured within the group `planted`."""
    metrics: Mapping[tuple[str, int], Mapping[str, Any]]
    """METRIC rows by run and layer. Empty if there are none."""
    configs: Mapping[str, Mapping[str, Any]]
    """Config of each run, from which runs that differ in the seed are found."""
    batch: Batch = "auto"
    seed: int = 0
    """Seed of the random dictionaries."""


def benchmark_rows(inputs: BenchmarkInputs, runs: Runs) -> Iterator[Row]:
    """Yields DICTIONARY_BENCHMARK rows of all runs, and of the bases that they are compared with.

    `runs` has all layers of a cross-layer transcoder. Raises ValueError if the text has too few documents.
    """
    named = {f"{group}/{name}": label for group, own in inputs.labels.items() for name, label in own.items()}
    tasks, left_out = make_tasks(named, inputs.held_out, LEAST)
    if left_out:
        text = f"fewer than {LEAST} tokens of a half of the documents have or lack {', '.join(left_out)}: left out"
        announce("benchmark", text)
    sums = measure_core(inputs.model, runs, inputs.held_out, inputs.batch)
    for (run, layer), found in sums.items():
        yield from _core_rows(run, layer, runs[run][layer], found, inputs.metrics.get((run, layer)))
    if missing := sorted({run for run, layer in sums if (run, layer) not in inputs.metrics}):
        text = f"no scores of {', '.join(missing)} in evaluation/metric.parquet: CE and KL are left out"
        announce("benchmark", text)
    yield from _stability_rows(runs, sums, inputs.configs)
    if tasks.names:
        yield from _probing_rows(inputs, runs, tasks, sums)


def _row(
    dictionary: LayerDictionary | None, run: str, layer: int, benchmark: str, measure: str, **columns: Any
) -> Row:
    row = {"run": run, "site": dictionary.site_in if dictionary else None, "layer": layer}
    row |= {"benchmark": benchmark, "measure": measure, "unit": "share"} | columns
    # a metric may be 0 / 0
    return row | {"value": None if math.isnan(row["value"]) else row["value"]}


def _scored(score: Score) -> Row:
    low, high = interval(score)
    return {"value": score.value, "low": low, "high": high}


def _core_rows(
    run: str, layer: int, dictionary: LayerDictionary, sums: CoreSums, metric: Mapping[str, Any] | None
) -> Iterator[Row]:
    for name, value, unit in core_metrics(dictionary, sums, metric):
        yield _row(dictionary, run, layer, "core", name, value=value, unit=unit, n=sums.firing.n)


def _stability_rows(
    runs: Runs, sums: Mapping[tuple[str, int], CoreSums], configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[Row]:
    pairs = seed_pairs({run: configs[run] for run in runs if run in configs})
    if not pairs:
        announce("benchmark", "no two runs differ only in their seed: no stability between seeds")
    for run, other in pairs:
        for layer in sorted(runs[run].keys() & runs[other].keys()):
            first, second = runs[run][layer], runs[other][layer]
            alive = [sums[each, layer].firing.fires > 0 for each in (run, other)]
            found = compare_features(first, second, (alive[0], alive[1]))
            if found is None:
                continue
            values = {"mean_max_decoder_cosine": found.decoder, "mean_max_encoder_cosine": found.encoder}
            shares = {f"matched_at_{least:g}": share for least, share in found.matched.items()}
            for measure, value in (values | shares | {"shared_at_0.7": found.shared}).items():
                unit = "cosine" if measure in values else "share"
                yield _row(
                    first,
                    run,
                    layer,
                    "stability",
                    measure,
                    other=other,
                    value=value,
                    unit=unit,
                    n=found.n_features,
                )


@torch.inference_mode()
def _probing_rows(
    inputs: BenchmarkInputs, runs: Runs, tasks: ProbeTasks, sums: Mapping[tuple[str, int], CoreSums]
) -> Iterator[Row]:
    """Yields the rows of sparse probing and absorption."""
    layers = sorted({layer for own in runs.values() for layer in own})
    planted, pairs = _planted_tasks(tasks)
    total = sum(map(len, runs.values())) + sum(1 + 2 * len(_inputs_of(runs, layer)) for layer in layers)
    with progress("benchmark: probes", total, "bases") as bar:
        for layer in layers:
            own = {run: each[layer] for run, each in runs.items() if layer in each}
            read = _inputs_of(runs, layer)
            # the outputs are needed only for the parents' directions
            outputs = sorted({each.site_out for each in own.values()}) if pairs else []
            sites = dict.fromkeys(Site(site, layer) for site in ("neurons", *read, *outputs))
            # one layer at a time, because the activations of all layers may not fit into memory
            found = scored_activations(inputs.model, list(sites), inputs.held_out, inputs.batch)
            activations = {site.name: value for site, value in found.items()}
            del found
            for run, dictionary in own.items():
                z = sparse_activations(dictionary, activations[dictionary.site_in])
                # in units of the output, as decoder rows of imported dictionaries have any norm
                norm = dictionary.row_norm.cpu()
                scaled = SparseActivations(z.token, z.feature, z.value * norm[z.feature.long()], z.width)
                yield from _sparse_rows(dictionary, run, layer, ProbeInputs(scaled, tasks), tasks)
                if pairs:
                    W_dec, y = dictionary.decoder(layer).cpu().float(), activations[dictionary.site_out]
                    found_pairs = measure_absorption(z, W_dec, y, planted, pairs)
                    yield from _absorption_rows(dictionary, run, layer, planted, found_pairs)
                bar.update(1)
            for site in read:
                x, readers = activations[site], [run for run, each in own.items() if each.site_in == site]
                some = own[readers[0]]
                yield from _sparse_rows(some, RESIDUAL, layer, ProbeInputs(x, tasks), tasks)
                yield from _score_rows(some, RESIDUAL, layer, None, dense_probe_scores(x, tasks), tasks)
                bar.update(1)
                l0 = fmean(sums[run, layer].firing.l0 for run in readers)
                width = max(own[run].width for run in readers)
                random = random_dictionary(x, site, layer, width, max(1, min(width, round(l0))), inputs.seed)
                z = sparse_activations(random, x)
                yield from _sparse_rows(some, RANDOM, layer, ProbeInputs(z, tasks), tasks)
                bar.update(1)
            neurons = ProbeInputs(activations["neurons"], tasks)
            for row in _sparse_rows(None, NEURONS, layer, neurons, tasks):
                yield row | {"site": "neurons"}
            # otherwise memory holds the activations of two layers during the next pass
            del activations, neurons
            bar.update(1)


def _inputs_of(runs: Runs, layer: int) -> list[str]:
    """Returns the sites that dictionaries of a layer read."""
    return sorted({each[layer].site_in for each in runs.values() if layer in each})


def _planted_tasks(tasks: ProbeTasks) -> tuple[ProbeTasks, list[NestedPair]]:
    """Returns the tasks of planted concepts, without the name of their group, and the pairs of nested ones."""
    prefix = f"{PLANTED}/"
    own = [i for i, name in enumerate(tasks.names) if name.startswith(prefix)]
    names = tuple(tasks.names[i].removeprefix(prefix) for i in own)
    planted = ProbeTasks(names, tasks.label[:, own], tasks.training, tasks.document)
    return planted, nested_pairs(planted, LEAST)


def random_dictionary(
    x: Float[Tensor, "token d"], site: str, layer: int, width: int, k: int, seed: int
) -> Dictionary:
    """Returns a topk dictionary whose features are random directions of the centred activations `x`."""
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(width, x.shape[1], generator=generator), dim=1)
    mean = x.mean(0)
    return Dictionary(
        rows, -rows @ mean, rows, mean, act="topk", k=k, site_in=site, site_out=site, layer=layer
    )


def _sparse_rows(
    dictionary: LayerDictionary | None, run: str, layer: int, inputs: ProbeInputs, tasks: ProbeTasks
) -> Iterator[Row]:
    """Yields the rows of probes that read k features."""
    for k, scores in sparse_probe_scores(inputs, tasks, KS).items():
        yield from _score_rows(dictionary, run, layer, k, scores, tasks)


def _score_rows(
    dictionary: LayerDictionary | None,
    run: str,
    layer: int,
    k: int | None,
    scores: Sequence[Score],
    tasks: ProbeTasks,
) -> Iterator[Row]:
    """Yields a row per task, and one per group of tasks with the mean."""
    positives = tasks.label[~tasks.training].sum(0).tolist()
    groups: dict[str, list[Score]] = {}
    for task, score, n in zip(tasks.names, scores, positives, strict=True):
        groups.setdefault(task.partition("/")[0], []).append(score)
        columns = {"task": task, "k": k, "n": n, **_scored(score)}
        yield _row(dictionary, run, layer, "sparse_probing", "balanced_accuracy", **columns)
    for group, own in groups.items():
        columns = {"task": group, "k": k, "n": len(own), **_scored(Score.mean(own))}
        yield _row(dictionary, run, layer, "sparse_probing", "mean_balanced_accuracy", **columns)


def _absorption_rows(
    dictionary: LayerDictionary,
    run: str,
    layer: int,
    tasks: ProbeTasks,
    found: Mapping[NestedPair, Any],
) -> Iterator[Row]:
    """Yields three rows per pair, or one without a value if no feature stands for the parent, and the means."""
    testing = tasks.label[~tasks.training].sum(0)
    absorbed: dict[str, list[Score]] = {}
    for pair, scores in found.items():
        parent, child = tasks.names[pair.parent], tasks.names[pair.child]
        n = int(testing[pair.child])
        columns = {"task": parent, "other": child, "n": n}
        if scores is None:
            yield _row(dictionary, run, layer, "absorption", "absorbed", value=math.nan, **columns)
            continue
        absorbed.setdefault(parent, []).append(scores.absorbed)
        yield _row(dictionary, run, layer, "absorption", "absorbed", **columns, **_scored(scores.absorbed))
        yield _row(dictionary, run, layer, "absorption", "silent", **columns, **_scored(scores.silent))
        columns["n"] = int(testing[pair.parent]) - n
        outside = _scored(scores.silent_outside)
        yield _row(dictionary, run, layer, "absorption", "silent_outside", **columns, **outside)
    means = absorbed | ({PLANTED: [score for own in absorbed.values() for score in own]} if absorbed else {})
    for parent, own in means.items():
        columns = {"task": parent, "n": len(own), **_scored(Score.mean(own))}
        yield _row(dictionary, run, layer, "absorption", "mean_absorbed", **columns)
