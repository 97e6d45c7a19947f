"""Labels by a server that knows what the features fire on, on features that each fire on two tokens."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.activations.inputs import make_tokens
from tests.features.inputs import NAMES, STRINGS
from tests.labels.chat_server import ChatServer, Reply, chat_server, fails, says
from tests.models import tiny_model

from circuitloom.config.features import Features
from circuitloom.config.label_model import LabelModel
from circuitloom.core.tables import LOGIT, read_table, write_table
from circuitloom.corpus.token_arrays import scored_positions
from circuitloom.features.basis import FeatureBasis
from circuitloom.features.tabulation import tabulate
from circuitloom.labels.label_source import LabelSource
from circuitloom.labels.model_client import ChatClient
from circuitloom.labels.model_labels import write_model_labels
from circuitloom.labels.scores import LabelScore
from circuitloom.language_model.hooks import Site
from circuitloom.language_model.model import load_model

WIDTH, SEQUENCES = 20, 40
CONFIG = Features(examples=8, bands=3, band_examples=4, before=5, after=3, batch=4)
PAIRS = {feature: (f" w{2 * feature + 4}", f" w{2 * feature + 5}") for feature in range(WIDTH)}
"""The tokens on which each feature fires, strongly on the first one and weakly on the second one."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> LabelSource:
    folder = tmp_path_factory.mktemp("study")
    model = load_model(tiny_model("llama", folder / "llama"), device="cpu")
    embedding = next(model.module.get_submodule(model.anatomy.embedding).parameters())

    def encode(x):
        token = torch.cdist(x, embedding).argmin(1)
        fires = ((token >= 4) & (token < 4 + 2 * (WIDTH - 1))).nonzero()[:, 0]
        return fires, (token[fires] - 4) // 2, torch.where(token[fires] % 2 == 0, 1.0, 0.25)

    rows = torch.eye(WIDTH, embedding.shape[1])
    basis = FeatureBasis(
        "pairs",
        0,
        Site("embedding"),
        WIDTH,
        encode,
        {0: rows},
        rows.norm(dim=1),
        "mlp_out",
        None,
        None,
        "pairs",
    )
    tokens = make_tokens(SEQUENCES + 5)
    tables = {name: folder / f"{name}.parquet" for name in (*NAMES, "logit")}
    config = CONFIG.model_copy(update={"tokens": SEQUENCES * tokens.context})
    tabulate([basis], model, tokens, STRINGS, config, [tables])
    logits = [
        {
            "run": "pairs", "layer": 0, "feature": feature, "sign": sign, "rank": rank, "token_id": rank,
            "token": f" {word}{rank}", "effect": float(sign),
        }
        for feature in range(WIDTH) for sign, word in ((1, "up"), (-1, "down")) for rank in range(3)
    ]  # fmt: skip
    write_table(LOGIT, logits, tables["logit"])
    return LabelSource("pairs", 0, tables, tokens, SEQUENCES, STRINGS, "", before=5, after=3, bands=3)


def oracle(question: str, _number: int = 0) -> Reply:
    """Names the marked tokens, and judges by these names."""
    marked = re.findall(r"\[\[(w\d+)\]\]", question)
    if question.startswith("Description: "):
        return says("Yes." if marked[0] in question.splitlines()[0].split() else "no")
    return says(f"Description: the tokens {' '.join(sorted(set(marked)))}")


@dataclass(frozen=True)
class Result:
    rows: list[dict]
    server: ChatServer


def label(
    source: LabelSource,
    folder: Path,
    reply: Callable[[str, int], Reply] = oracle,
    outputs: dict | None = None,
    **keys,
) -> Result:
    with chat_server(reply) as server:
        config = LabelModel(endpoint=server.endpoint, name="oracle", **{"features": 6, "attempts": 2, **keys})
        path = folder / "label.parquet"
        client = ChatClient(config, pause=0.001)
        write_model_labels(
            source, config, client, folder / "answers.jsonl", lambda firings: {f: (outputs or {})[f] for f in firings
            if f in (outputs or {})}, path,
        )  # fmt: skip
        return Result(read_table(path).to_pylist(), server)


def truth(source: LabelSource, feature: int) -> tuple[int, int]:
    """Numbers of scoring tokens with the feature and without it."""
    rows = slice(source.sequences)
    token, document = source.tokens.take(rows).numpy(), source.tokens.take_document(rows).numpy()
    scoring = scored_positions(token, source.tokens.separator_id) & (document % 2 == 1)
    fires = scoring & ((token - 4) // 2 == feature) & (token >= 4)
    return int(fires.sum()), int((scoring & ~fires).sum())


def test_a_right_label_has_perfect_scores(source: LabelSource, tmp_path: Path) -> None:
    found = label(source, tmp_path, outputs={0: LabelScore(0.75, 0.5, 1.0)})
    assert [row["feature"] for row in found.rows] == [0, 4, 7, 11, 14, 18]
    for row in found.rows:
        n, _ = truth(source, row["feature"])
        names = " ".join(sorted(name.strip() for name in PAIRS[row["feature"]]))
        assert row["label"] == f"the tokens {names}"
        assert (row["run"], row["layer"], row["source"], row["kind"]) == ("pairs", 0, "oracle", "text")
        assert row["n_tokens"] == n
        for score in ("precision", "recall", "f1", "balanced_accuracy", "fuzzing"):
            assert row[score] == 1, score
        assert row["f1_low"] < 1 == row["f1_high"]
        assert row["f1_learning"] is None
    assert (found.rows[0]["output"], found.rows[0]["output_low"]) == (0.75, 0.5)
    assert found.rows[1]["output"] is None


def test_a_label_that_predicts_every_token_has_the_density_as_precision(
    source: LabelSource, tmp_path: Path
) -> None:
    always = lambda question, _number: says("yes") if question.startswith("Description") else oracle(question)  # noqa: E731
    for row in label(source, tmp_path, always, features=[2, 5]).rows:
        n, without = truth(source, row["feature"])
        assert (row["recall"], row["balanced_accuracy"]) == (1, 0.5)
        assert row["precision"] == pytest.approx(n / (n + without))
        assert row["f1"] == pytest.approx(2 * n / (2 * n + without))


def test_the_model_sees_examples_of_learning_documents_and_no_activation_of_scoring_ones(
    source: LabelSource, tmp_path: Path
) -> None:
    asked = label(source, tmp_path, features=[3]).server.questions
    learning, scoring = (set() for _ in range(2))
    documents = source.tokens.take_document(slice(source.sequences)).numpy()
    for row in read_table(source.tables["example"]).to_pylist():
        if row["feature"] == 3:
            document = documents[row["sequence"], row["position"]]
            (learning if document % 2 == 0 else scoring).add("".join(row["tokens"]))
    first, *verdicts = asked
    shown = [re.sub(r"^\d+: |[\[\]]", "", line) for line in first.splitlines() if re.match(r"\d+: ", line)]
    assert 5 < len(shown) <= 15
    assert set(shown) <= {text.strip() for text in learning} and not set(shown) & {
        text.strip() for text in scoring
    }
    assert first.splitlines()[0].startswith("10: ") and "more likely: up0, up1, up2" in first
    assert all(question.splitlines()[1].count("[[") == 1 for question in verdicts)


def test_the_cost_is_told_before_anything_is_asked(source: LabelSource, tmp_path: Path, capsys) -> None:
    told: list[str] = []

    def reply(question: str, number: int) -> Reply:
        if not number:
            told.append(capsys.readouterr().err)
        return oracle(question)

    found = label(source, tmp_path, reply, concurrency=1)
    cost = re.search(
        r"pairs layer 0: asks (\S+) for 6 labels and (\d+) verdicts: about ([\d,]+) tokens", told[0]
    )
    assert cost and cost[1] == f"{found.server.endpoint}/chat/completions"
    assert int(cost[2]) == len(found.server.bodies) - 6
    characters = sum(len(m["content"]) for body in found.server.bodies for m in body["messages"])
    assert int(cost[3].replace(",", "")) == pytest.approx(characters / 4, rel=0.1)


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(source: LabelSource, tmp_path: Path) -> None:
    asked: list[str] = []

    def dies(question: str, number: int) -> Reply:
        if number >= 30:
            return fails(503, "going down")
        asked.append(question)
        return oracle(question)

    with pytest.raises(ValueError, match="going down"):
        label(source, tmp_path, dies, concurrency=3)
    assert not (tmp_path / "label.parquet").exists()
    again = label(source, tmp_path, concurrency=3)
    assert not set(asked) & set(again.server.questions)
    alone = label(source, tmp_path / "alone")
    assert len(asked) + len(again.server.questions) == len(alone.server.questions)
    assert again.rows == alone.rows


def test_more_contexts_and_features_need_only_further_questions(source: LabelSource, tmp_path: Path) -> None:
    first = label(source, tmp_path, features=[2], contexts=4)
    second = label(source, tmp_path, features=[2, 9], contexts=6)
    assert not set(first.server.questions) & set(second.server.questions)
    assert label(source, tmp_path, features=[2, 9], contexts=6).server.questions == []


def test_a_refused_label_leaves_no_row_and_is_told(source: LabelSource, tmp_path: Path, capsys) -> None:
    def reply(question: str, _number: int) -> Reply:
        refused = "[[w8]]" in question and not question.startswith("Description")
        return says("I'm sorry, I can't help.") if refused else oracle(question)

    found = label(source, tmp_path, reply, features=[2, 3])
    assert [row["feature"] for row in found.rows] == [3]
    assert (
        "oracle gave no label to 1 features (2), such as \"I'm sorry, I can't help.\""
        in capsys.readouterr().err
    )


def test_answers_that_are_neither_yes_nor_no_are_left_out_and_told(
    source: LabelSource, tmp_path: Path, capsys
) -> None:
    def reply(question: str, _number: int) -> Reply:
        return (
            says("perhaps")
            if question.startswith("Description") and "[[w4]]" in question
            else oracle(question)
        )

    complete = label(source, tmp_path / "complete", features=[1]).rows[0]
    capsys.readouterr()
    row = label(source, tmp_path, reply, features=[1]).rows[0]
    text = capsys.readouterr().err
    told = re.search(r"(\d+) of (\d+) answers are neither yes nor no, such as 'perhaps'", text)
    assert told and int(told[2]) == complete["n_judged"]
    assert row["n_judged"] == complete["n_judged"] - int(told[1])
    assert row["f1"] == 1


def test_features_that_never_fire_or_do_not_exist_are_named(
    source: LabelSource, tmp_path: Path, capsys
) -> None:
    assert label(source, tmp_path, features=[WIDTH - 1]).rows == []
    assert f"never fires, and gets no label: {WIDTH - 1}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"has no feature {WIDTH}; choose from 0 to {WIDTH - 1}"):
        label(source, tmp_path, features=[WIDTH])


def test_a_number_of_features_is_spread_over_those_that_fire(source: LabelSource) -> None:
    assert source.choose(3) == [0, 9, 18]
    assert source.choose(500) == list(range(WIDTH - 1))
