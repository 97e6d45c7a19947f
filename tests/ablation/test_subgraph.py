"""The smallest subgraph of a prompt: passes with sets of features, the search, and its scores."""

from itertools import combinations

import pytest
import torch
from tests.attribution.inputs import load_tiny, make_linearized
from tests.models import VOCABULARY

from circuitloom.ablation.feature_edits import FeatureEdit, apply_edits, make_edits
from circuitloom.ablation.feature_sets import (
    FeaturePlaces,
    free_values,
    frozen_values,
    set_weights,
)
from circuitloom.ablation.interventions import run_free
from circuitloom.ablation.set_search import SetSearch
from circuitloom.ablation.subgraph import SubgraphSearch, find_subgraphs, make_units
from circuitloom.attribution.direct_effects import logit_targets
from circuitloom.attribution.graph import Roots, subgraph_scores, trace_graph
from circuitloom.attribution.tracer import feature_name
from circuitloom.config.circuits import FeatureChange, SubgraphConfig
from circuitloom.language_model.hooks import Site, edited

MODELS = [("llama", "skip transcoder"), ("gpt2", "skip cross-layer"), ("neox", "cross-layer")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return lambda architecture: load_tiny(architecture, folder, "float64")


@pytest.fixture(params=MODELS, ids=", ".join)
def case(request, models):
    """A model, its linearized model of the prompt, and a logit difference that its features raise."""
    model = models(request.param[0])
    local = make_linearized(model, request.param[1])
    return model, local, raised_roots(model, local)


def raised_roots(model, local) -> Roots:
    """Difference of the logits that ablating all features lowers and raises most."""
    last = torch.tensor([len(local.captured) - 1])
    every = logit_targets(local, last.expand(VOCABULARY), torch.eye(VOCABULARY, dtype=torch.float64))
    places = FeaturePlaces.of(local.features)
    both = set_weights([torch.arange(len(places)), torch.arange(0)], len(places))
    untouched, none = free_values(model, local, places, both, every)
    weights = torch.zeros(1, VOCABULARY, dtype=torch.float64)
    weights[0, (untouched - none).argmax()] = 1
    weights[0, (untouched - none).argmin()] = -1
    return Roots(logit_targets(local, last, weights), torch.ones(1, dtype=torch.float64))


def test_a_set_alone_is_what_an_edit_that_keeps_its_features_measures(case):
    model, local, roots = case
    kept = torch.arange(0, len(local.features), 3)
    layers = local.features.layer[kept].unique().tolist()
    change = FeatureChange(kind="keep", features=[feature_name(local, int(i)) for i in kept])
    outcome = apply_edits(model, local, make_edits(local, change), [roots.targets])
    assert layers == list(local.dictionaries)
    places, weight = FeaturePlaces.of(local.features), set_weights([kept], len(local.features))
    free = free_values(model, local, places, weight, roots.targets)
    frozen = frozen_values(local, places, weight, roots.targets)
    torch.testing.assert_close(free[0], outcome.free, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(frozen[0], outcome.frozen, atol=1e-9, rtol=1e-9)
    assert abs(float(free - outcome.before)) > 1e-3


def test_several_sets_in_one_pass_do_not_mix(case):
    model, local, roots = case
    sets = [torch.arange(start, len(local.features), 4) for start in range(4)]
    places = FeaturePlaces.of(local.features)
    together = free_values(model, local, places, set_weights(sets, len(places)), roots.targets)
    for own, value in zip(sets, together, strict=True):
        alone = free_values(model, local, places, set_weights([own], len(places)), roots.targets)
        torch.testing.assert_close(alone[0], value, atol=1e-9, rtol=1e-9)
    without = set_weights(sets[:1], len(places), kept=False)
    ablated = free_values(model, local, places, without, roots.targets, other=1.0)
    change = FeatureChange(kind="ablate", features=[feature_name(local, int(i)) for i in sets[0]])
    outcome = apply_edits(model, local, make_edits(local, change), [roots.targets])
    torch.testing.assert_close(ablated[0], outcome.free, atol=1e-9, rtol=1e-9)


def test_without_errors_the_reconstruction_of_kept_features_replaces_the_mlp(case):
    """With all features kept and errors ablated, each MLP's output is y_hat of the running pass."""
    model, local, roots = case
    places = FeaturePlaces.of(local.features)
    # features that fire only without errors are kept too
    found = free_values(
        model, local, places, torch.ones(1, len(places)), roots.targets, 1.0, keep_errors=False
    )
    pending: dict[int, torch.Tensor] = {}

    def reconstruct(layer):
        dictionary = local.dictionaries[layer]

        def edit(x, y):
            written = dictionary.write(dictionary.encode(x))
            for output, vector in (written if isinstance(written, dict) else {layer: written}).items():
                pending[output] = pending.get(output, 0) + vector
            y_hat = pending.pop(layer) + dictionary.b_dec
            if dictionary.W_skip is not None:
                y_hat = y_hat + x @ dictionary.W_skip.T
            return torch.where(local.replaced[:, None], y_hat, y)

        return edit

    edits = {Site("mlp_out", layer): reconstruct(layer) for layer in local.dictionaries}
    with torch.inference_mode(), edited(model, edits):
        by_hand = run_free(model, local, 1, {}, [roots.targets])[0]
    torch.testing.assert_close(found, by_hand, atol=1e-9, rtol=1e-9)


def test_means_replace_ablated_features(case):
    model, local, roots = case
    places = FeaturePlaces.of(local.features)
    means = {layer: torch.rand(each.width, dtype=torch.float64) for layer, each in local.dictionaries.items()}
    kept = torch.arange(0, len(places), 2)
    found = free_values(model, local, places, set_weights([kept], len(places)), roots.targets, means=means)
    columns = (column[kept].tolist() for column in (places.layer, places.position, places.feature))
    listed = set(zip(*columns, strict=True))

    def change(layer):
        shape = (len(local.captured), local.dictionaries[layer].width)
        factor, offset = torch.zeros(shape, dtype=torch.float64), means[layer].expand(shape).clone()
        for own, position, feature in listed:
            if own == layer:
                factor[position, feature], offset[position, feature] = 1.0, 0.0
        return FeatureEdit(torch.arange(shape[1]), factor, offset)

    outcome = apply_edits(
        model, local, {layer: change(layer) for layer in local.dictionaries}, [roots.targets]
    )
    torch.testing.assert_close(found[0], outcome.free, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("errors", ["keep", "ablate"])
def test_subgraphs_keep_the_share_and_greedy_ones_need_every_node(case, errors):
    model, local, roots = case
    methods = ["influence", "total_effect", "greedy"] if errors == "keep" else ["total_effect"]
    config = SubgraphConfig(errors=errors, methods=methods)
    result = find_subgraphs(model, local, roots, config)
    assert result.untouched == pytest.approx(float(run_free(model, local, 1, {}, [roots.targets])[0]))
    search = SubgraphSearch(model, local, roots, make_units(local, roots), errors == "keep")
    for found in result.subgraphs:
        if errors == "keep":
            assert 0 < len(found.active) < result.n_units
        if not len(found.active):
            continue
        assert config.share <= found.kept <= 2 - config.share
        assert float(search.shares([found.unit])[0]) == pytest.approx(found.kept)
        if found.method != "greedy":
            # one feature less of the ranking is not enough
            assert not search.enough(search.shares([found.unit[:-1]]), config.share)
        else:
            fewer = [found.unit[torch.arange(len(found.unit)) != i] for i in range(len(found.unit))]
            assert found.minimal and not search.enough(search.shares(fewer), config.share).any()


def test_first_order_losses_are_gradients_at_the_set(case):
    """A factor 1 - h on one feature changes the target by -h times its loss, for small h."""
    model, local, roots = case
    search = SubgraphSearch(model, local, roots, make_units(local, roots), measured=1)
    circuit = torch.arange(0, search.n_units, 2)
    with torch.inference_mode():
        estimate = search.estimated_loss(circuit)
    h, weight = 1e-5, set_weights([circuit] * 6, search.n_units).double()
    for row, place in enumerate(range(6)):
        weight[row, circuit[place]] -= h
    base = search.alone([circuit])
    moved = free_values(model, local, search.places, weight, roots.targets) @ roots.weight
    torch.testing.assert_close((base - moved) / h, estimate[:6], atol=1e-5, rtol=1e-4)


def test_members_of_a_supernode_stay_together(case):
    model, local, roots = case
    groups = [list(range(start, start + 5)) for start in range(0, len(local.features) - 5, 5)]
    result = find_subgraphs(model, local, roots, SubgraphConfig(methods=["greedy"]), groups)
    [found] = result.subgraphs
    assert len(found.unit) < len(found.active)
    kept = set(found.active.tolist())
    for group in groups:
        reached = set(group) & set((make_units(local, roots) >= 0).nonzero()[:, 0].tolist())
        assert len(kept & set(group)) in (0, len(reached & set(group)))
    assert found.unit_of_active.unique().tolist() == list(range(len(found.unit)))


def test_scores_of_all_features_are_those_of_the_graph_and_of_none_only_direct(case):
    _, local, roots = case
    every = torch.ones(len(local.features), dtype=torch.bool)
    full = trace_graph(local, roots).scores
    assert vars(subgraph_scores(local, roots, every)) == pytest.approx(vars(full))
    some = every.clone()
    some[::3] = False
    for_some, for_none = subgraph_scores(local, roots, some), subgraph_scores(local, roots, ~every)
    assert for_none.replacement < for_some.replacement < full.replacement


def test_a_target_that_features_lower_has_no_subgraph(case):
    model, local, roots = case
    lowered = Roots(roots.targets, -roots.weight)
    for found in find_subgraphs(model, local, lowered, SubgraphConfig()).subgraphs:
        assert not len(found.unit) and not len(found.active)


class AddingSearch(SetSearch):
    """A search in which the metric is a known function of the kept components."""

    def __init__(self, play, n, measured=None):
        self.play, self.n, self.measured = play, n, measured
        self.none, self.untouched = float(play(set())), float(play(set(range(n))))

    def alone(self, sets):
        return torch.tensor([float(self.play(set(each.tolist()))) for each in sets], dtype=torch.float64)

    def measured_loss(self, circuit, place):
        kept = set(circuit.tolist())
        return torch.tensor([self.play(kept) - self.play(kept - {int(circuit[i])}) for i in place]).double()

    def estimated_loss(self, circuit):
        return torch.ones(len(circuit), dtype=torch.float64)


def test_the_first_components_are_found_although_more_keep_less():
    # the third component lowers the metric, so that two keep enough, three do not, and five do
    search = AddingSearch(lambda s: sum([5, 4, -6, 3, 4][i] for i in s), 5)
    assert search.first(torch.arange(5), 0.8).tolist() == [0, 1]
    assert search.first(torch.arange(5), 1.1).tolist() == []


def test_greedy_elimination_finds_a_pair_of_two_and_stops_when_all_are_needed():
    def play(s):
        return 6.0 * ({0, 7} <= s) + 3.0 * bool(s & {2, 3}) + 0.1 * len(s & {4, 5, 6})

    for measured in (None, 4):
        search = AddingSearch(play, 10, measured)
        result = search.eliminate(torch.arange(10), 0.9)
        every = play(set(range(10)))
        sets = [set(own) for n in range(11) for own in combinations(range(10), n)]
        best = min(len(own) for own in sets if play(own) >= 0.9 * every)
        assert len(result.kept) == best == 3 and {0, 7} < set(result.kept.tolist())
        assert result.minimal and sorted([*result.kept.tolist(), *result.removed.tolist()]) == list(range(10))


def test_a_set_that_overshoots_the_target_is_not_enough():
    shares = torch.tensor([-1.0, 0.79, 0.8, 1.0, 1.2, 1.21, 16.8], dtype=torch.float64)
    found = SubgraphSearch.enough(object.__new__(SubgraphSearch), shares, 0.8)
    assert found.tolist() == [False, False, True, True, True, False, False]


def test_if_the_smallest_losses_cannot_go_the_removal_that_comes_nearest_to_the_model_does():
    class Bounded(AddingSearch):
        def enough(self, shares, share):
            return (shares >= share) & (shares <= 2 - share)

    # the first five keep 1.19 of the target; without the fourth, or the fourth and the fifth, they keep too much;
    # without the second they keep 1.16, and without the third 1
    worth = [10.15, 0.3, 1.9, -0.2, -0.25, -1.9]
    search = Bounded(lambda s: sum(worth[i] for i in s), 6)
    result = search.eliminate(torch.arange(5), 0.8)
    assert result.removed[0] == 2
