"""Patching a step from another text, and the comparison on questions of guilds from the corpus to the report."""

import pyarrow as pa
import pytest
import torch
from tests.attribution.inputs import BOS, PROMPT, load_tiny, make_cross_layer, make_dictionaries
from tests.cases.test_compare import make_case, small_study
from tests.corpus.inputs import built, section
from tests.models import D_MODEL, LAYERS, VOCABULARY

from circuitloom.ablation.feature_edits import apply_edits, dense_activations, make_edits
from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import logit_targets
from circuitloom.attribution.graph import Roots
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.cases.case_report import write_report
from circuitloom.cases.compare.full_graph import FullGraph, full_graph
from circuitloom.cases.compare.measurements import active_mask, measure_patch
from circuitloom.cases.compare.study import draw_prompts, open_truth, study_compare
from circuitloom.cases.context import CaseContext
from circuitloom.config import load_study
from circuitloom.config.circuits import Circuits, FeatureChange
from circuitloom.config.evaluation import Evaluation
from circuitloom.core.tables import CONCEPT, FEATURE_CONCEPT, METRIC, read_table, write_table
from circuitloom.corpus.annotations import annotate
from circuitloom.corpus.guilds import FACTS, VERBS
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.corpus.tokens import open_tokens
from circuitloom.evaluation.concept_matching import match_concepts
from circuitloom.evaluation.concepts import concept_annotations
from circuitloom.evaluation.held_out import load_held_out
from circuitloom.language_model.model import load_model

OTHER = PROMPT.clone()
OTHER[3] = 33
SOME = {0: set(range(0, 40, 2)), 2: {1, 3, 5, 7, 9, 11}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny("gpt2", tmp_path_factory.mktemp("models"), "float64")


def graph_of(model, prompt, kind) -> FullGraph:
    linearized = LinearizedModel(
        capture_pass(model, read_weights(model), prompt), make_dictionaries(model, kind), BOS
    )
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[[20]] - torch.eye(VOCABULARY)[[21]]
    targets = logit_targets(linearized, torch.tensor([10]), weights)
    return full_graph(linearized, Roots(targets, torch.ones(1, dtype=torch.float64)))


@pytest.mark.parametrize("kind", ["transcoder", "cross-layer"])
def test_a_patch_sets_the_features_to_their_activations_in_the_other_text(model, kind):
    graph, other = graph_of(model, PROMPT, kind), graph_of(model, OTHER, kind)
    edits = {}
    for layer, features in SOME.items():
        there = dense_activations(other.model, layer)
        for feature in features:
            for position in range(1, len(PROMPT)):
                name = f"{layer}/{feature}@{position}"
                change = FeatureChange(
                    kind="clamp", features=[name], strength=float(there[position, feature])
                )
                (edit,) = make_edits(graph.model, change).values()
                edits[layer] = edits[layer].then(edit) if layer in edits else edit
    expected = apply_edits(model, graph.model, edits, [graph.roots.targets])
    before = apply_edits(model, other.model, {}, [other.roots.targets]).before
    patch = measure_patch(model, graph, other, SOME)
    assert patch.measured == pytest.approx(float(expected.before - expected.free), rel=1e-9)
    assert patch.difference == pytest.approx(float(expected.before - before), rel=1e-9)
    assert abs(patch.measured) > 1e-3
    here = graph.predict_set(active_mask(graph.model, SOME))
    there = other.predict_set(active_mask(other.model, SOME))
    assert patch.predicted == pytest.approx(float(here - there))
    assert patch.n_features >= int(active_mask(graph.model, SOME).sum())


def test_a_patch_of_all_features_replaces_what_they_add(model):
    graph, other = graph_of(model, PROMPT, "transcoder"), graph_of(model, OTHER, "transcoder")
    nothing = measure_patch(model, graph, graph, SOME)
    assert (nothing.difference, nothing.predicted) == (0, 0)
    assert nothing.measured == pytest.approx(0, abs=1e-12)
    none = measure_patch(model, graph, other, {})
    assert (none.n_features, none.predicted) == (0, 0) and none.measured == pytest.approx(0, abs=1e-12)
    assert none.difference == pytest.approx(-measure_patch(model, other, graph, {}).difference) != 0


# From the corpus to the report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small corpus of guilds, a random model of its words, and random dictionaries matched with the concepts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("guilds")
    corpus = built(folder / "corpus", source="guilds", context=64, train_tokens=1000, validation_tokens=6000)
    files = (corpus / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    write_table(
        CONCEPT, annotate(section(source="guilds", context=64), 0, *files), corpus / "concept.parquet"
    )
    config = GPT2Config(
        vocab_size=open_tokens(corpus / "validation.zarr").vocabulary, n_positions=64, n_embd=D_MODEL,
        n_layer=LAYERS, n_head=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = GPT2LMHeadModel(config)
        made.transformer.wte.weight.data.normal_()
    made.save_pretrained(folder / "model")
    model = load_model(folder / "model", device="cpu")
    runs = {"p0": make_dictionaries(model), "c0": make_cross_layer().layers}
    context = CaseContext(model, load_tokenizer(str(corpus / "tokenizer")), runs, 64)
    paths = (str(corpus / "validation.zarr"), str(corpus / "concept.parquet"))
    return folder, context, paths


def test_questions_are_compared_through_the_guild(study):
    folder, context, paths = study
    evaluation = Evaluation(tokens=100_000)
    held_out = load_held_out(open_tokens(paths[0]), evaluation)
    labels = concept_annotations(read_table(paths[1]), held_out)
    by_layer = {layer: {run: own[layer] for run, own in context.runs.items()} for layer in range(LAYERS)}
    rows = list(match_concepts(context.model, by_layer, held_out, labels, evaluation))
    write_table(
        FEATURE_CONCEPT, [row for row in rows if row["run"] in context.runs], folder / "matched.parquet"
    )
    truth = open_truth(*paths, [str(folder / "matched.parquet")], evaluation)
    metrics = pa.Table.from_pylist(
        [
            dict.fromkeys(METRIC.columns)
            | {"run": run, "layer": layer, "l0": 4.0, "fvu": 0.5, "alive": 0.75, "delta_ce": 0.1, "kl": 0.2}
            for run in context.runs
            for layer in (-1, *range(LAYERS))
        ],
        schema=METRIC.schema,
    )
    # random features tell no guild well, so all that are listed for a guild count
    case = make_case(
        groups={"plt": ["p0"], "clt": ["c0"]},
        prompts=[],
        questions=["told", "held_out"],
        concepts=True,
        matching=0.0,
        occurrences=1,
    )
    made = study_compare("x", context, metrics, truth, case, Circuits())
    write_report(made, folder / "x")
    rows = read_table(folder / "x" / "compared_prompt.parquet").to_pylist()
    assert len({row["text"] for row in rows}) == 4 and len(rows) == 8
    for row in rows:
        _, town, _, verb = row["text"].split()
        assert row["through_concept"].split(", ")[1] == row["through_concept"].split(", ")[0] + "_asked"
        assert row["n_patched"] >= 0 and row["patch_difference"] != 0
        assert row["other_text"].split()[1] == town and row["other_text"].split()[3] == verb
    assert any(row["patch_measured"] != 0 for row in rows)
    claims = {claim.name: claim for claim in made.claims}
    own = [row for row in rows if row["run"] == "c0"]
    assert claims["clt_replaces_the_step"].value == pytest.approx(
        sum(row["patch_measured"] for row in own) / sum(row["patch_difference"] for row in own), rel=1e-5
    )
    assert claims["clt_predicts_the_replacement"].value == pytest.approx(
        sum(abs(row["patch_predicted"] - row["patch_measured"]) for row in own)
        / sum(abs(row["patch_measured"]) for row in own),
        rel=1e-5,
    )
    assert "patched from the other text" in (folder / "x" / "result.md").read_text()


def test_questions_become_prompts_whose_answers_differ():
    case = make_case(prompts=[], questions=["held_out"], concepts=True, count=10)
    drawn = draw_prompts(case)
    answers = {(fact.guild, fact.verb): fact.answer for fact in FACTS}
    assert len(drawn) == 10
    for each in drawn:
        _, answer, _, other = each.target.split()
        assert each.through[0].startswith("guild_") and each.other_through[0] != each.through[0]
        numbers = [int(names[0].split("_")[1]) - 1 for names in (each.through, each.other_through)]
        assert [answers[number, VERBS.index(each.text.split()[-1])] for number in numbers] == [answer, other]


def test_slots_fill_the_other_text_with_the_same_words():
    prompt = {"text": "w9 {word} w31", "other": "w8 {word} w31", "through": "a", "other_through": ["b"]}
    drawn = draw_prompts(make_case(prompts=[prompt], concepts=True, count=3))
    assert len(drawn) == 3 and all(each.other == each.text.replace("w9", "w8") for each in drawn)
    assert drawn[0].through == ["a"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompts": []}, "prompts: there are none"),
        ({"prompts": [], "questions": ["told"]}, "set concepts: true"),
        ({"prompts": [{"text": "w1", "other": "w2"}]}, "set `through` and `other_through`"),
        ({"prompts": [{"text": "w1", "through": "a", "other_through": "b"}]}, "set `other`"),
        (
            {"prompts": [{"text": "w1", "other": "{x}", "through": "a", "other_through": "b"}]},
            "nothing fills",
        ),
    ],
)
def test_keys_of_steps_that_cannot_be_used_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        make_case(**keys)


def test_another_text_of_another_length_is_refused(study):
    _, context, _ = study
    prompt = {
        "text": "the Genoa brewer drinks", "target": "logit ale vs wine", "through": "guild_1",
        "other": "the Genoa brewer", "other_through": "guild_2",
    }  # fmt: skip
    case = make_case(
        groups={"plt": ["p0"]}, pairs=[], prompts=[prompt], slots={}, concepts=True, occurrences=1
    )
    metrics = pa.Table.from_pylist(
        [dict.fromkeys(METRIC.columns) | {"run": "p0", "layer": 0, "l0": 1.0, "fvu": 0.5, "alive": 1.0}],
        schema=METRIC.schema,
    )
    with pytest.raises(
        ValueError, match=r"'the Genoa brewer' has 4 tokens, .* has 5; choose one with as many"
    ):
        study_compare("x", context, metrics, None, case, Circuits())


def test_a_study_of_another_corpus_has_no_questions():
    config = small_study({"a": ["plt"]}, questions=["told"], concepts=True)
    with pytest.raises(
        ValueError, match=r"cases\.compared\.questions: chronicle has no facts; set corpus\.source"
    ):
        load_study(config)
    assert load_study(config | {"corpus": {"source": "guilds"}}).cases["compared"].generated
