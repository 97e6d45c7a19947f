"""Ablate the circuit that prompts of a template have in common, on single prompts of the template.

The circuit is a set of features, each at a role. Attention heads and errors of transcoders are intact.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.aggregate_graph import RoleFeature
from ..attribution.linearized_model import LinearizedModel
from ..language_model.hooks import edited
from ..language_model.model import LanguageModel
from .feature_sets import FeaturePlaces, MeanActivations, set_edits, sets_per_pass
from .metrics import PromptMetric, last_logits

RoleSet = Sequence[RoleFeature]


def draw_controls(
    circuit: RoleSet, counts: Counter[RoleFeature], least: int, sets: int, seed: int
) -> list[list[RoleFeature]]:
    """Returns random sets with the same number of features per layer as the circuit, and none of its features.

    A feature is drawn if it fires at its role on at least `least` prompts (`counts`). In a layer with too few of them,
    those that fire on fewer prompts are drawn too, the most frequent first.
    """
    generator, inside = torch.Generator().manual_seed(seed), set(circuit)
    needed = Counter(each.layer for each in circuit)
    controls: list[list[RoleFeature]] = [[] for _ in range(sets)]
    for layer, n in sorted(needed.items()):
        others = sorted(
            (each for each in counts if each.layer == layer and each not in inside),
            key=lambda each: (-counts[each], each),
        )
        often = sum(counts[each] >= least for each in others)
        pool = others[: max(n, often)]
        for drawn in controls:
            drawn += [pool[i] for i in torch.randperm(len(pool), generator=generator)[:n].tolist()]
    return controls


@torch.inference_mode()
def measure_role_sets(
    language_model: LanguageModel,
    model: LinearizedModel,
    prompt: PromptMetric,
    roles: Sequence[int],
    sets: Sequence[RoleSet],
    means: MeanActivations | None = None,
) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
    """Returns the metric of a prompt with only the features of each set, and with only these ablated, as float64.

    `roles` has the role of each position. Features at roles that the prompt does not have are left out. Ablated
    features are set to zero, or to `means`. Nothing is frozen.
    """
    position = {role: i for i, role in enumerate(roles)}
    found = sorted(
        {
            (each.layer, position[each.role], each.feature)
            for own in sets
            for each in own
            if each.role in position
        }
    )
    number = {place: i for i, place in enumerate(found)}
    columns = torch.tensor(found, dtype=torch.int64).view(-1, 3).T.to(model.replaced.device)
    places = FeaturePlaces(*(column.contiguous() for column in columns))
    inside = torch.zeros(len(sets), len(found), device=model.replaced.device)
    for row, own in zip(inside, sets, strict=True):
        for each in own:
            if each.role in position:
                row[number[each.layer, position[each.role], each.feature]] = 1.0
    results = []
    for weight, other in ((inside, 0.0), (1 - inside, 1.0)):
        metric = []
        for part in weight.split(sets_per_pass(model)):
            with edited(language_model, set_edits(model, places, part, other, means=means)):
                logits = last_logits(language_model, prompt.token.expand(len(part), -1))
            metric.append(prompt.metric(logits).double().cpu())
        results.append(torch.cat(metric))
    return results[0], results[1]


def means_by_layer(values: Mapping[int, Tensor | None]) -> MeanActivations | None:
    """Returns the rows of `replacement_values` by layer, or None if ablated features are set to zero."""
    rows = {layer: value[0] for layer, value in values.items() if value is not None}
    return rows or None
