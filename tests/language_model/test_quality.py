"""Quality figures of models with known probabilities."""

import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.language_model.inputs import CONTEXT, make_tokenizer, make_tokens
from tests.models import VOCABULARY, tiny_gpt2
from torch import Tensor, nn

from circuitloom.core.tables import DOCUMENT, LANGUAGE_MODEL, PRETRAINING, write_table
from circuitloom.corpus.chronicle.grammar import vocabulary, write_episode
from circuitloom.corpus.grammars import GRAMMARS
from circuitloom.corpus.guilds import VERBS, frequent_answer, questions
from circuitloom.corpus.tokenizer import load_tokenizer, word_tokenizer
from circuitloom.language_model import lm_head
from circuitloom.language_model.anatomy import Anatomy
from circuitloom.language_model.model import LanguageModel, load_model
from circuitloom.language_model.pretraining_plot import plot_pretraining
from circuitloom.language_model.quality import (
    answered,
    cross_entropy,
    document_losses,
    grammar_distance,
    greater_than,
    language_model_rows,
)


class Bigram(nn.Module):
    """Logits that depend on the last token only."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(logits)
        self.unembedding = nn.Linear(*logits.shape, bias=False)
        self.unembedding.weight.data = torch.eye(len(logits), dtype=logits.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.unembedding(self.embedding(tokens))


def bigram(logits: Tensor) -> LanguageModel:
    names = {
        "embedding": "embedding",
        "unembedding": "unembedding",
        "layers": 0,
        "heads": 0,
        "parallel": False,
    }
    return LanguageModel(Bigram(logits), Anatomy(**dict.fromkeys(Anatomy.__dataclass_fields__, "") | names))


def random_logits(size: int) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0))


def test_predictions_from_a_bos_are_masked_and_others_are_not(tmp_path):
    tokens = make_tokens(tmp_path / "validation.zarr", sequences=40)
    logits = random_logits(VOCABULARY)
    result = cross_entropy(bigram(logits), tokens)
    log_p, rows = logits.log_softmax(-1), tokens.take(slice(0, 40)).tolist()
    pairs = [(i, a, b) for row in rows for i, (a, b) in enumerate(pairwise(row))]
    assert result.n_tokens == len(pairs) == 40 * (CONTEXT - 1)
    assert result.every == pytest.approx(-np.mean([float(log_p[a, b]) for _, a, b in pairs]))
    assert result.masked == pytest.approx(-np.mean([float(log_p[a, b]) for i, a, b in pairs if i > 0]))


def test_the_first_sequences_are_measured_if_the_number_of_tokens_is_given(tmp_path):
    tokens, model = make_tokens(tmp_path / "validation.zarr", sequences=40), bigram(random_logits(VOCABULARY))
    first = make_tokens(tmp_path / "first.zarr", sequences=3)
    assert first.take(slice(0, 3)).equal(tokens.take(slice(0, 3)))
    assert cross_entropy(model, tokens, 4 * CONTEXT - 1) == cross_entropy(model, first)


def test_no_table_of_logits_is_complete(tmp_path, monkeypatch):
    tokens = make_tokens(tmp_path / "validation.zarr", sequences=8)
    model, sizes = bigram(random_logits(VOCABULARY)), []
    unembed = model.unembed
    monkeypatch.setattr(lm_head, "CACHE_ELEMENTS", 200)
    monkeypatch.setattr(lm_head, "ROWS", 10)

    def count(*args):
        sizes.append((logits := unembed(*args)).numel())
        return logits

    monkeypatch.setattr(model, "unembed", count)
    cross_entropy(model, tokens)
    document_losses(model, [np.arange(2, 30)] * 5)
    # the first is the check of the head
    assert max(sizes[1:]) <= 4 * VOCABULARY


def test_a_loss_worse_than_guessing_is_named(tmp_path, capsys):
    tokens, nothing = make_tokens(tmp_path / "validation.zarr", sequences=2), document_table([None], [2])
    tokenizer = load_tokenizer(str(make_tokenizer(tmp_path / "tokenizer")))
    language_model_rows(bigram(torch.zeros(VOCABULARY, VOCABULARY)), tokens, nothing, tokenizer, 0)
    assert "guessing" not in capsys.readouterr().err
    # each token is sure to be followed by itself, and never is
    language_model_rows(bigram(9.0 * torch.eye(VOCABULARY)), tokens, nothing, tokenizer, 0)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "guessing" in line]
    assert line.startswith("circuitloom: language_model: a cross-entropy of 9.0")
    assert "is worse than guessing (4.16); is the tokenizer the model's own" in line


def test_the_loss_of_a_document_does_not_depend_on_its_batch(tmp_path):
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    random = np.random.default_rng(0)
    documents = [random.integers(2, VOCABULARY, length) for length in (31, 5, 12, 2) * 10]
    together = document_losses(model, documents)
    for document, loss in list(zip(documents, together, strict=True))[:8]:
        tokens = torch.from_numpy(document)
        log_p = model.logits(tokens[None])[0, :-1].log_softmax(-1)
        assert loss == pytest.approx(-float(log_p.gather(1, tokens[1:, None]).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (torch.float16, "set language_model.dtype to bfloat16 or float32"),
        (torch.bfloat16, "set language_model.dtype to float32, or check the model's weights"),
        (torch.float32, "check the model's weights"),
    ],
)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_loss_that_is_not_finite_stops_the_measurement_and_names_the_dtype(dtype, remedy, value, tmp_path):
    tokens = make_tokens(tmp_path / "validation.zarr", sequences=4)
    logits = random_logits(VOCABULARY).to(dtype)
    seen = tokens.take(slice(0, 1))[0, 3]
    logits[seen, 0] = value
    name, places = str(dtype).removeprefix("torch."), 4 * (CONTEXT - 1)
    message = rf"loss on held-out text is not finite in {name} at \d+ of {places} places; {remedy}"
    with pytest.raises(ValueError, match=message):
        cross_entropy(bigram(logits), tokens)
    with pytest.raises(ValueError, match="is not finite"):
        document_losses(bigram(logits), [np.array([1, int(seen), 2])])


def test_the_grammar_has_distance_zero_from_itself():
    logits, random = random_logits(10), np.random.default_rng(0)
    documents = [random.integers(1, 10, length) for length in (3, 7, 9)]
    log_p = logits.double().log_softmax(-1).numpy()
    exact = np.array([log_p[[0, *d], [*d, 0]].sum() for d in documents])
    distance = grammar_distance(bigram(logits), documents, exact, bos_id=0)
    assert distance.entropy == pytest.approx(-exact.sum() / (4 + 8 + 10))
    assert distance.percent == pytest.approx(0, abs=1e-4)
    assert distance.percent_error == pytest.approx(0, abs=1e-4)


def test_a_document_that_fills_the_context_after_its_bos_is_measured(tmp_path):
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    longest = model.module.config.n_positions - 1
    distance = grammar_distance(model, [np.full(longest, 3)], np.array([-2.0 * longest]), bos_id=0)
    assert math.isfinite(distance.cross_entropy)


def test_the_standard_error_equals_the_spread_over_fresh_documents():
    logits, random = random_logits(10), np.random.default_rng(0)

    def draw():
        documents = [random.integers(1, 10, random.integers(3, 12)) for _ in range(60)]
        return grammar_distance(bigram(logits), documents, np.array([-2.0 * len(d) for d in documents]), 0)

    draws = [draw() for _ in range(60)]
    spread = np.std([each.cross_entropy - each.entropy for each in draws])
    assert np.mean([each.standard_error for each in draws]) == pytest.approx(spread, rel=0.3)


def test_greater_than_is_1_if_all_probability_is_on_later_years_and_minus_1_if_none_is():
    numbers = torch.arange(100)
    later = torch.full((200, 200), -1e4)
    # after the prompt's last token, 150, the number 60
    later[150, 60] = 0
    prompts = torch.tensor([[150]])
    assert greater_than(bigram(later), prompts, torch.tensor([59]), numbers) == pytest.approx(1)
    assert greater_than(bigram(later), prompts, torch.tensor([60]), numbers) == pytest.approx(-1)


def test_greater_than_does_not_renormalize_probabilities():
    uniform = torch.zeros(200, 200)
    prompts, years = torch.tensor([[150], [151]]), torch.tensor([9, 89])
    # 90 later and 10 not, then 10 later and 90 not, each of 1/200
    assert greater_than(bigram(uniform), prompts, years, torch.arange(100)) == pytest.approx(0, abs=1e-6)
    assert greater_than(bigram(uniform), prompts[:1], years[:1], torch.arange(100)) == pytest.approx(0.4)


@pytest.fixture
def chronicle_tokenizer(tmp_path) -> Path:
    """A folder with chronicle's tokenizer."""
    word_tokenizer(vocabulary()).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def document_table(episodes, n_tokens: list[int]) -> pa.Table:
    return pa.table(
        {
            "split": ["validation"] * len(episodes),
            "document": pa.array(range(len(episodes)), pa.int32()),
            "n_tokens": pa.array(n_tokens, pa.int32()),
            "log_probability": [None if e is None else e.log_probability for e in episodes],
            "text": ["some words" if e is None else e.text for e in episodes],
        },
        schema=DOCUMENT.schema,
    )


def test_chronicle_has_all_figures_and_real_text_only_cross_entropies(chronicle_tokenizer, tmp_path):
    tokenizer = load_tokenizer(str(chronicle_tokenizer))
    tokens = make_tokens(tmp_path / "validation.zarr")
    # a context of 16 words holds no document of the grammar, one of 128 all of them
    long = make_tokens(tmp_path / "long.zarr", sequences=8, context=128)
    model = bigram(torch.zeros(tokenizer.vocabulary, tokenizer.vocabulary))
    episodes = [write_episode(0, "validation", index) for index in range(3)]
    written = document_table(episodes, [len(e.words) for e in episodes])
    names = [
        {row["figure"] for row in language_model_rows(model, t, written, tokenizer, 0)}
        for t in (tokens, long)
    ]
    assert names[0] == {"cross_entropy", "cross_entropy_every", "n_tokens", "parameters"}
    rows = {row["figure"]: row["value"] for row in language_model_rows(model, long, written, tokenizer, 0)}
    assert rows["document_cross_entropy"] == pytest.approx(math.log(tokenizer.vocabulary))
    assert rows["n_documents"] == 3
    # 99 - YY numbers are later and YY + 1 are not, and YY is 50 on average
    assert rows["greater_than"] == pytest.approx(-2 / tokenizer.vocabulary, abs=1e-6)
    real = document_table([None], [2])
    assert {row["figure"] for row in language_model_rows(model, long, real, tokenizer, 0)} == names[0]
    write_table(
        LANGUAGE_MODEL, language_model_rows(model, long, written, tokenizer, 0), tmp_path / "t.parquet"
    )


def test_a_tokenizer_that_splits_numbers_has_no_greater_than(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    characters = Tokenizer(
        models.BPE({c: i for i, c in enumerate("\t 0123456789abcdefghijklmnopqrstuvwxyz")}, [])
    )
    PreTrainedTokenizerFast(tokenizer_object=characters, bos_token="\t").save_pretrained(
        tmp_path / "characters"
    )
    tokenizer = load_tokenizer(str(tmp_path / "characters"))
    model = bigram(torch.zeros(tokenizer.vocabulary, tokenizer.vocabulary))
    tokens = make_tokens(tmp_path / "long.zarr", sequences=4, context=128, largest=30)
    written = document_table([write_episode(0, "validation", 0)], [3])
    names = {row["figure"] for row in language_model_rows(model, tokens, written, tokenizer, 0)}
    assert "document_cross_entropy" in names and "greater_than" not in names


def test_the_plot_shows_the_loss_over_tokens_and_the_entropy(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_a, **_k: drawn.append(self))
    rows = [{"step": s, "loss": 4.0 / s, "learning_rate": 0.1, "tokens_per_second": 1.0} for s in (1, 2, 3)]
    table = pa.Table.from_pylist(rows, schema=PRETRAINING.schema)
    plot_pretraining(table, {"grammar_entropy": 1.5}, 500_000, tmp_path / "plot.png")
    axes = drawn[0].axes[0]
    curve, entropy = axes.lines
    assert curve.get_xdata().tolist() == [0.5, 1.0, 1.5] and curve.get_ydata().tolist() == [4, 2, 4 / 3]
    assert set(entropy.get_ydata()) == {1.5} and entropy.get_linestyle() == "--"
    assert "nats" in axes.get_ylabel() and "millions" in axes.get_xlabel()


def test_a_model_that_reads_only_the_verb_answers_facts_of_guilds_as_often_as_a_guess(tmp_path):
    guilds = GRAMMARS["guilds"]
    word_tokenizer(guilds.vocabulary()).save(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    tokens = make_tokens(tmp_path / "long.zarr", sequences=4, context=64)
    documents = list(islice(guilds.documents(0, "validation"), 3))
    written = document_table(documents, [len(each.words) for each in documents])
    logits = torch.zeros(tokenizer.vocabulary, tokenizer.vocabulary)
    for number, verb in enumerate(VERBS):
        logits[tokenizer.ids[verb], tokenizer.ids[frequent_answer(number)]] = 1
    found = language_model_rows(bigram(logits), tokens, written, tokenizer, 0, source="guilds")
    rows = {row["figure"]: row["value"] for row in found}
    # the most frequent answer is right for two of six guilds
    for name in ("accuracy_told", "accuracy_held_out"):
        assert rows[name] == rows[f"{name}_guess"] == pytest.approx(1 / 3)
    assert rows["grammar_entropy"] == pytest.approx(
        -sum(each.log_probability for each in documents) / sum(len(each.words) + 1 for each in documents)
    )
    each = questions(0, held_out=True)[0]
    logits[tokenizer.ids[each.text.split()[-1]], tokenizer.ids[each.fact.answer]] = 2
    assert answered(bigram(logits), tokenizer, 0, [each]) == [True]
