"""Circuits of logit differences: on games with known answers, and on a model with one planted feature."""

import numpy as np
import pytest
import torch
from tests.ablation.component_inputs import make_prompt
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.models import D_MODEL, LAYERS

from circuitloom.ablation.causal_effects import component_values
from circuitloom.ablation.circuits import (
    CircuitExperiment,
    attributed_worth,
    component_worth,
    draw_subsets,
    measure_completeness,
)
from circuitloom.ablation.components import Ablation, feature_basis, head_basis
from circuitloom.ablation.faithfulness import FaithfulnessCurve
from circuitloom.ablation.metrics import logit_difference, make_prompt_metrics
from circuitloom.cases.case_report import write_report
from circuitloom.cases.claims import Bootstrap
from circuitloom.cases.common_circuit import recovered_share
from circuitloom.cases.context import CaseContext
from circuitloom.cases.difference.measurements import CircuitSearch, Ranking
from circuitloom.cases.difference.report import (
    draw_components,
    draw_curves,
    mean_gap,
    needed,
    needed_ratio,
    positive_share,
)
from circuitloom.cases.difference.study import draw_places, study_difference
from circuitloom.config.cases import DifferenceCase
from circuitloom.config.circuits import BehaviourPrompt
from circuitloom.core.tables import read_table
from circuitloom.corpus.templates import draw_prompts
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.dictionaries.dictionary import Dictionary

PLANTED = (LAYERS - 1, 7)
"""Layer and number of the feature that raises token 12 above token 20."""


class Game(CircuitExperiment):
    """An experiment whose metric is a known function of the components that are not ablated."""

    def __init__(self, model, play, components):
        super().__init__(model, head_basis(model), [None] * LAYERS)
        object.__setattr__(self, "play", play)
        object.__setattr__(self, "components", set(range(components)))

    def alone(self, prompts, sets):
        return self._played(prompts, [set(each.tolist()) for each in sets])

    def without(self, prompts, sets):
        return self._played(prompts, [self.components - set(each.tolist()) for each in sets])

    def _played(self, prompts, sets):
        return torch.tensor([[float(self.play(each)) for each in sets]] * len(prompts), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture
def play(model):
    """Search in a game with a number of components, and their ranking in numerical order."""

    def start(game, components):
        experiment = Game(model, game, components)
        order = torch.arange(components)
        n_kept = torch.tensor(sorted({0, 1, 2, 4, components}))
        sets = [order[:k] for k in n_kept]
        prompts = [make_prompt()] * 2
        original = experiment.without(prompts, [order[:0]])[:, 0]
        curve = FaithfulnessCurve(
            n_kept,
            experiment.alone(prompts, sets),
            experiment.without(prompts, sets),
            torch.zeros(2, len(sets)),
            original,
        )
        return CircuitSearch(experiment, prompts), Ranking(
            "attribution", order, torch.zeros(components), curve
        )

    return start


def additive(*weights):
    return lambda there: 3 + sum(weights[i] for i in there)


def test_the_fewest_top_components_are_found_between_the_sizes_of_the_curve(play):
    search, ranking = play(additive(10, 4, 3, 2, 1, 0, 0, 0, 0, 0), 10)
    assert ranking.curve.n_kept.tolist() == [0, 1, 2, 4, 10]
    assert search.find(ranking, 0.96).tolist() == [0, 1, 2, 3, 4]
    assert search.find(ranking, 0.9).tolist() == [0, 1, 2, 3]
    assert search.find(ranking, 0.5).tolist() == [0]


def test_components_that_do_not_raise_the_metric_give_no_circuit(play):
    search, ranking = play(additive(-1, -2, 0), 3)
    assert search.find(ranking, 0.9).tolist() == []
    assert search.prune(ranking.order[:0], 0.9, 0.01).tolist() == []


def test_components_that_are_worth_nothing_or_harm_are_pruned(play):
    search, _ = play(additive(10, 0, 5, -4, 0.05, 4), 6)
    # 0.05 of 15.05 is a share of 0.0033
    assert search.prune(torch.arange(6), 0.9, 0.01).tolist() == [0, 2, 5]
    assert search.prune(torch.arange(6), 0.9, 0.001).tolist() == [0, 2, 4, 5]


def test_of_two_redundant_components_one_is_kept(play):
    search, _ = play(lambda there: 5 * (0 in there) + 5 * bool({1, 2} & there), 3)
    assert search.worth(torch.arange(3), torch.arange(3)).tolist() == [0.5, 0, 0]
    circuit = search.prune(torch.arange(3), 0.9, 0.01).tolist()
    assert circuit in ([0, 1], [0, 2])


def test_pruning_never_takes_the_circuit_below_the_share(play):
    search, _ = play(additive(*[1.0] * 20), 20)
    # each is worth 0.05, less than `least`, but 18 are needed
    assert len(search.prune(torch.arange(20), 0.9, 0.1)) >= 18


def test_a_circuit_without_a_backup_is_not_complete(play):
    search, _ = play(lambda there: 4 * (0 in there) + 6 * bool({1, 2} & there), 3)
    subsets = [torch.tensor([1]), torch.tensor([0])]
    for circuit, gaps in (([0, 1], [-6, 0]), ([0, 1, 2], [0, 0])):
        alone, model = measure_completeness(search.experiment, search.prompts, torch.tensor(circuit), subsets)
        assert (alone - model)[0].tolist() == gaps


def test_worth_is_what_the_circuit_loses_and_not_what_the_model_loses(play):
    search, _ = play(lambda there: 6 * bool({0, 1} & there), 2)
    both, alone = torch.tensor([0, 1]), torch.tensor([0])
    assert component_worth(search.experiment, search.prompts, both, torch.tensor([0])).tolist() == [[0], [0]]
    assert component_worth(search.experiment, search.prompts, alone, torch.tensor([0])).tolist() == [[6], [6]]


def test_subsets_go_from_one_component_to_half_the_circuit():
    circuit = torch.arange(100, 180)
    subsets = draw_subsets(circuit, 10, 0)
    sizes = [len(each) for each in subsets]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] == 40
    assert all(torch.isin(each, circuit).all() and len(each.unique()) == len(each) for each in subsets)
    again = draw_subsets(circuit, 10, 0)
    assert all(torch.equal(a, b) for a, b in zip(subsets, again, strict=True))
    assert [len(each) for each in draw_subsets(circuit[:0], 3, 0)] == [0, 0, 0]


def test_shares_are_0_for_nothing_kept_and_1_for_the_untouched_model():
    rows = np.array([[[5.0, 1.0, 9.0], [7.0, 3.0, 11.0]]])
    assert recovered_share(rows).tolist() == [0.5]
    assert np.isnan(recovered_share(rows[:, :, [0, 2, 1]])).all()
    # |-2| and |4|, over 8
    assert mean_gap(np.array([[[1.0, 9.0, -2.0, 3.0], [1.0, 9.0, -2.0, 5.0]]])).tolist() == [3 / 8]
    assert positive_share(np.array([[[1.0, -3.0, 0.0], [1.0, 2.0, 0.0]]])).tolist() == [1 / 3]
    assert np.isnan(positive_share(np.empty((2, 4, 0)))).all()


def test_the_number_needed_is_where_the_curve_first_reaches_the_share():
    n_kept = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    shares = np.array([[0, 0.2, 0.6, 1.0, 0.7], [0, 0, 0, 0, 0.5], [0, 0.9, 0.1, 1, 1]])
    assert needed(n_kept, shares, 0.8)[[0, 2]] == pytest.approx([3, 0.8 / 0.9])
    assert np.isnan(needed(n_kept, shares, 0.8)[1])
    # one prompt: untouched 10, then metrics with 0, 2, 4 and with 0, 4, 8 kept
    rows = np.array([[[10.0, 0.0, 8.0, 10.0, 0.0, 4.0, 8.0]]])
    both = needed_ratio(np.array([0.0, 2.0, 4.0]), np.array([0.0, 4.0, 8.0]), 0.8)
    assert both(rows).tolist() == [2 / 8]


EXAMPLES = [
    BehaviourPrompt(text="w5 {a} w6 {b} w5 {a} w6", target="logit {b} vs {a}"),
    BehaviourPrompt(text="w5 {a} w6 {b} w5 {b} w6", target="logit {a} vs {b}"),
    BehaviourPrompt(text="w7 {a} {c}", target="logit {a} vs {a_2}"),
]
WORDS = [f"w{i}" for i in range(10, 18)]
SLOTS = {"a": WORDS, "a_2": WORDS, "b": [f"w{i}" for i in range(20, 28)], "c": ["w30", "w31", "w32"]}


def test_texts_and_targets_are_filled_together_and_halves_share_no_text():
    drawn = draw_prompts(EXAMPLES, SLOTS, 24, 0)
    assert len({prompt.text for prompt in drawn}) == len(drawn) == 24
    halves = {half: [p for p in drawn if p.half == half] for half in ("finding", "testing")}
    assert len(halves["finding"]) == len(halves["testing"]) == 12
    for half in halves.values():
        for first in ("w5", "w7"):
            assert sum(prompt.text.startswith(first) for prompt in half) == {"w5": 8, "w7": 4}[first]
    for prompt in drawn:
        words, (token, against) = prompt.text.split(), prompt.target.removeprefix("logit ").split(" vs ")
        if words[0] == "w7":
            assert token == words[1] != against
        else:
            assert against == words[5] and {token, against} == {words[1], words[3]}


def test_variants_of_the_same_slots_have_the_same_words_in_the_same_half():
    drawn = draw_prompts(EXAMPLES[:2], SLOTS, 20, 0)
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert first.half == second.half and first.text.split()[:4] == second.text.split()[:4]


def test_too_few_fillings_for_two_halves_are_refused():
    with pytest.raises(ValueError, match="in one way only; add words to its slots"):
        draw_prompts([BehaviourPrompt(text="w4 {c}", target="logit w4 vs w5")], {"c": ["w6"]}, 8, 0)


def test_targets_other_than_a_difference_are_refused():
    with pytest.raises(ValueError, match="is not a logit difference; write `logit TOKEN vs TOKEN`"):
        DifferenceCase(kind="difference", prompts=[BehaviourPrompt(text="w4", target="logit w5")])
    with pytest.raises(ValueError, match=r"nothing fills \{b\}"):
        DifferenceCase(kind="difference", prompts=[BehaviourPrompt(text="w4", target="logit w5 vs {b}")])


def plant(model) -> dict[int, Dictionary]:
    """Dictionaries that write almost nothing, except for one feature that always fires and makes the difference."""
    dictionaries = make_dictionaries(model, act="relu", k=None)
    rows = model.module.get_submodule(model.anatomy.unembedding).weight.detach()
    for layer, dictionary in dictionaries.items():
        dictionary.W_dec.mul_(1e-3)
        if layer == PLANTED[0]:
            direction = rows[12] - rows[20]
            # a feature without any source would be no node of a pruned graph
            dictionary.W_enc[PLANTED[1]] *= 1e-3
            dictionary.b_enc[PLANTED[1]] = 1
            dictionary.W_dec[PLANTED[1]] = 60 * direction / direction.norm()
    assert rows.shape[1] == D_MODEL
    return dictionaries


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Reports about a target on a model with the planted feature and heads that do almost nothing."""
    folder = tmp_path_factory.mktemp("tiny")
    model = load_tiny("gpt2", folder)
    for layer in range(LAYERS):
        model.attention(layer).get_submodule(model.anatomy.attention_projection).weight.mul_(1e-3)
    context = CaseContext(model, load_tokenizer(str(folder / "gpt2")), {"run": plant(model)}, 32)

    def run(target, **keys):
        case = DifferenceCase(
            kind="difference",
            prompts=[BehaviourPrompt(text="w5 {a} w6 {b}", target=target)],
            slots=SLOTS,
            count=12,
            ablation="zero",
            resamples=200,
            traced=1,
            **{"least": 0.05, **keys},
        )
        return study_difference("planted", context, case)

    return run


@pytest.fixture(scope="module")
def report(study):
    return study("logit w12 vs w20")


def test_claims_about_a_circuit_fail_where_ablation_does_not_lower_the_metric(study, tmp_path):
    report = study("logit w20 vs w12")
    assert report.tables["component"] == []
    failed = {claim.name: claim.value for claim in report.claims if not claim.holds}
    unmeasured = {"faithful", "necessary", "through_features", "complete", "minimal", "explained", "fewer"}
    unmeasured |= {"common_sufficient", "common_necessary", "common_over_random"}
    assert {name for name, value in failed.items() if value is None} == unmeasured
    write_report(report, tmp_path)
    assert "there is no circuit to find" in (tmp_path / "result.md").read_text()


def test_one_planted_feature_is_found_as_the_circuit(report):
    rows = [row for row in report.tables["component"] if row["in_circuit"]]
    assert [(row["kind"], row["layer"], row["component"]) for row in rows] == [("feature", *PLANTED)]
    assert rows[0]["helps"] and rows[0]["worth"] > 0.9 and rows[0]["attribution"] > 0
    values = {claim.name: claim.value for claim in report.claims}
    assert values["faithful"] == pytest.approx(1, abs=0.1)
    assert values["necessary"] == values["through_features"] == pytest.approx(0, abs=0.1)
    assert values["minimal"] == 1


def test_the_common_circuit_of_one_planted_feature_is_sufficient_and_necessary(report):
    values = {claim.name: claim.value for claim in report.claims}
    assert values["common_sufficient"] == pytest.approx(1, abs=0.1)
    assert values["common_necessary"] == pytest.approx(0, abs=0.1)
    assert values["common_over_random"] > 0.8
    nodes = report.tables["aggregate_node"]
    common = {
        (row["layer"], row["feature"]) for row in nodes if row["kind"] == "feature" and row["is_common"]
    }
    assert PLANTED in common
    assert {row["token"] for row in nodes} <= {"<bos>", "w5", "{a}", "w6", "{b}"}
    # all prompts reach the root, at the role of the last token
    (root,) = [row for row in nodes if row["kind"] == "root"]
    assert root["n_prompts"] == 6 and root["role"] == max(row["role"] for row in nodes)
    edges = [row for row in report.tables["aggregate_edge"] if row["target"] == root["node"]]
    (planted,) = [
        row["node"]
        for row in nodes
        if (row["layer"], row["feature"]) == PLANTED and row["role"] == root["role"]
    ]
    (edge,) = [row for row in edges if row["source"] == planted]
    assert edge["share"] == 1 and edge["effect_low"] <= edge["effect"] <= edge["effect_high"]
    outcome = [row for row in report.tables["outcome"] if row["condition"] == "common circuit alone"]
    assert len(outcome) == 12 and all(row["value"] is not None for row in outcome)
    assert sum("**Common circuit.**" in sentence for sentence in report.method) == 1


def test_without_aggregated_graphs_there_is_no_common_circuit(study, tmp_path):
    report = study("logit w12 vs w20", aggregated=0, subsets=2, compare=False)
    assert report.tables["aggregate_node"] == report.tables["aggregate_edge"] == []
    assert not any(claim.name.startswith("common") for claim in report.claims)
    write_report(report, tmp_path)
    assert (tmp_path / "common.png").is_file()


def test_an_estimated_worth_finds_the_same_circuit(study):
    report = study("logit w12 vs w20", measured=1)
    rows = [row for row in report.tables["component"] if row["in_circuit"]]
    assert [(row["layer"], row["component"]) for row in rows] == [PLANTED]


def test_worth_is_measured_for_a_sample_of_a_large_circuit(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    context = CaseContext(
        model, load_tokenizer(str(tmp_path / "gpt2")), {"run": make_dictionaries(model)}, 32
    )
    case = DifferenceCase(
        kind="difference",
        prompts=[BehaviourPrompt(text="w5 {a} w6 {b}", target="logit w20 vs w12")],
        slots=SLOTS, count=8, ablation="zero", least=0.0, measured=2, subsets=2, resamples=50, traced=1, compare=False,
    )  # fmt: skip
    report = study_difference("sampled", context, case)
    rows = [row for row in report.tables["component"] if row["in_circuit"]]
    known = [row for row in rows if row["worth"] is not None]
    assert len(known) == 2 < len(rows) and all(row["helps"] is None for row in rows if row not in known)
    claim = next(claim for claim in report.claims if claim.name == "minimal")
    assert claim.statement.startswith("share of 2 components of the circuit, drawn at random, whose removal")
    assert f"is measured for 2 of {len(rows)}." in " ".join(report.method)


def test_a_sample_of_places_is_drawn_without_repetition():
    places = draw_places(100, 7, 3)
    assert len(places.unique()) == 7 and places.tolist() == sorted(places.tolist())
    assert draw_places(5, None, 3).tolist() == draw_places(5, 5, 3).tolist() == list(range(5))


@pytest.mark.parametrize("kind", ["features", "heads"])
def test_an_estimated_worth_is_the_worth_of_a_small_change_within_the_circuit(model, tmp_path, kind):
    model = load_tiny("gpt2", tmp_path, "float64")
    dictionaries = {i: each.to("cpu", torch.float64) for i, each in make_dictionaries(model).items()}
    basis = feature_basis("run", dictionaries) if kind == "features" else head_basis(model)
    (prompt,) = make_prompt_metrics([torch.tensor([1, 9, 8, 7])], [logit_difference(12, 20)], 1, -1)
    outside = torch.rand(len(basis), generator=torch.Generator().manual_seed(0)) < 0.5
    ablation, nothing = Ablation(outside[None], prompt.where[None]), [None] * len(basis.parts)
    with torch.inference_mode(), basis.ablating(model, ablation, prompt.where, nothing):
        found = component_values(model, basis, prompt)
    # components inside are set to nearly their own values, those outside to 0
    kept = zip(basis.parts, basis.slices, found, strict=True)
    values = [v[-1:] * 0.9999 * (~outside[own]).repeat_interleave(part.size) for part, own, v in kept]
    experiment = CircuitExperiment(model, basis, values)
    circuit = (~outside).nonzero()[:, 0]
    measured = component_worth(experiment, [prompt], circuit, torch.arange(len(circuit)))[0]
    estimated = attributed_worth(experiment, [prompt], circuit)
    assert measured.abs().max() > 1e-8
    torch.testing.assert_close(estimated, measured, rtol=1e-2, atol=1e-9)


def test_tables_hold_every_prompt_condition_and_size(report, tmp_path):
    write_report(report, tmp_path)
    outcome = read_table(tmp_path / "outcome.parquet").to_pylist()
    conditions = {row["condition"] for row in outcome}
    assert len(outcome) == 12 * len(conditions) == 12 * 13
    by_key = {(row["prompt"], row["condition"]): row["value"] for row in outcome}
    for prompt in range(12):
        assert by_key[prompt, "untouched"] > by_key[prompt, "nothing kept"]
    faithfulness = read_table(tmp_path / "faithfulness.parquet").to_pylist()
    assert {row["basis"] for row in faithfulness} == {"run + heads", "neurons + heads"}
    assert {row["n_prompts"] for row in faithfulness} == {6}
    pictures = {f"{figure}.png" for figure in DifferenceCase.figures}
    assert pictures == {f.name for f in tmp_path.glob("*.png")} and set(report.figures) == set(
        DifferenceCase.figures
    )
    assert {f"{table}.parquet" for table in DifferenceCase.tables} == {
        f.name for f in tmp_path.glob("*.parquet")
    }
    result = (tmp_path / "result.md").read_text()
    assert f"feature {PLANTED[0]}/{PLANTED[1]}" in result


def test_intervals_are_over_prompts_of_the_testing_half(report):
    n = {claim.name: claim.n for claim in report.claims}
    assert n.pop("behaves") == n.pop("prefers") == 12
    assert set(n.values()) == {6}
    claim = next(each for each in report.claims if each.name == "faithful")
    testing = [row["value"] for row in report.tables["outcome"] if row["half"] == "testing"]
    untouched, none, alone, *_ = np.array(testing).reshape(-1, 6)
    expected = Bootstrap(200, 0.95, 0).interval(np.stack([alone, none, untouched], 1), recovered_share)
    assert (claim.value, claim.low, claim.high) == pytest.approx(expected)


def test_the_picture_of_the_circuit_shows_the_worth_of_each_component(report):
    rows = [row for row in report.tables["component"] if row["worth_low"] is not None]
    axes = report.figures["components"][0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["/".join(map(str, PLANTED))]
    ((points, _, (interval,)),) = axes.containers
    assert points.get_xdata().tolist() == [rows[0]["worth"]]
    assert interval.get_segments()[0][:, 0] == pytest.approx([rows[0]["worth_low"], rows[0]["worth_high"]])
    assert "loses without it" in axes.get_xlabel()


def test_components_without_a_defined_worth_are_not_drawn():
    row = {"kind": "head", "layer": 0, "component": 1, "in_circuit": True}
    known = row | {"component": 2, "worth": 0.4, "worth_low": 0.3, "worth_high": 0.5}
    figure = draw_components([row | dict.fromkeys(("worth", "worth_low", "worth_high")), known])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.2"]


def test_the_picture_of_curves_shows_each_basis_alone_and_removed_and_the_pruned_circuit(report):
    rows = [row for row in report.tables["faithfulness"] if row["n_kept"]]
    claims = {claim.name: claim.value for claim in report.claims}
    axes = report.figures["curve"][0].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    for basis, name in (("run + heads", "features and heads"), ("neurons + heads", "neurons and heads")):
        own = [row for row in rows if row["basis"] == basis]
        alone, removed = lines[f"{name}, alone"], lines[f"all but these {name}"]
        assert alone.get_xdata().tolist() == removed.get_xdata().tolist() == [row["n_kept"] for row in own]
        assert alone.get_ydata() == pytest.approx([row["faithfulness"] for row in own])
        assert removed.get_ydata() == pytest.approx([row["remaining"] for row in own])
    for label, claim in (("pruned circuit, alone", "faithful"), ("all but the pruned circuit", "necessary")):
        assert list(lines[label].get_xdata()) == [1] and list(lines[label].get_ydata()) == [claims[claim]]


def test_a_circuit_without_a_defined_share_is_not_drawn():
    curve = FaithfulnessCurve(
        torch.tensor([0, 1]), torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2)
    )
    axes = draw_curves({"heads": curve}, (0, None, None), 0.8).axes[0]
    assert [line.get_label() for line in axes.lines[:2]] == ["heads, alone", "all but these heads"]
    assert len(axes.lines) == 3
