"""Macros agree with numpy on the same activations, and with Python's `re` on the same text."""

from pathlib import Path

import duckdb
import numpy as np
import pytest
from tests.catalog.tables import (
    BLANKS,
    CONCEPTS,
    CONFIG,
    FEATURE,
    FILLED,
    LAYER,
    LAYERS,
    OTHER_RUN,
    RUN,
    RUNS,
    SILENT,
    WORDS,
    make_corpus,
    matching,
    places,
    write_token_table,
)
from tests.models import CONTEXT

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog
from circuitloom.catalog.queries import fill_in, macros
from circuitloom.catalog.questions_page import macros_section
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.core.tables import read_table

SELECTED = [(RUN, LAYER, n) for n in (0, 4)] + [
    (RUN, 10, 11),
    (OTHER_RUN, LAYER, 65_537),
    (OTHER_RUN, 10, 69_999),
]
PATTERNS = [
    *("caught", "caught$", "^<bos> ?caught", "^<bos>( ?w1)*", "caught|w12", "^<bos> a| caught$|s$", "w1 ?w1 ?w1"),
    *(r"\bw1\b", r"w1\b", r"\w1", r"\.\B", r"\b", r"\W+w1\w*", " a", "(w1 ?){3}", "w1+", r"\.", "é", "日本 ?é"),
    *("", "x*", "$", "^", "[^.]*caught", "^[^.]*caught", "^[^.]{60,}s", "(?s:.{100})", "^(?s:.{100})", "(?s:.{101})"),
    *("(?i:CAUGHT ?S)", "(?m:^) ?a", "(?m:^)(?s:.{99,})", r".*\bcaught", "(nevertheless ?){2}", "a.*(the|é).*a"),
    *(r"(?s:\b.{99})", r"(?s:\B.{99})", "(?s:the.{97})", "(?s: .{99})", r"\$|s", "zebra", "a w1", "日本$"),
]  # fmt: skip


def assert_equal(found: list[tuple], expected: list[tuple]) -> None:
    assert len(found) == len(expected) > 0
    for column, other in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert [x is None for x in column] == [x is None for x in other]
        values, others = ([x for x in values if x is not None] for values in (column, other))
        assert values == (others if isinstance(others[0], str) else pytest.approx(others, rel=1e-6))


@pytest.mark.parametrize(("run", "layer", "feature"), SELECTED)
def test_coactivation_counts_tokens_on_which_both_fire(study, catalog, run, layer, feature) -> None:
    firing = {key: z > 0 for key, z in study.firing().items() if key[0] == run}
    mine = firing.pop((run, layer, feature))
    expected = []
    for (_, other_layer, other), fires in firing.items():
        both = int((mine & fires).sum())
        shares = (both / (mine | fires).sum(), both / mine.sum(), both / fires.sum())
        lift = both * study.scored.sum() / (mine.sum() * fires.sum())
        expected += [(other_layer, other, both, *shares, lift)] if both else []
    found = catalog.execute("FROM coactivation(?, ?, ?)", [run, layer, feature]).fetchall()
    expected.sort(key=lambda row: (-row[3], row[:2]))
    assert_equal(found, expected)
    assert [row[:2] for row in found] == [row[:2] for row in expected]


@pytest.mark.parametrize(("run", "layer", "feature"), SELECTED)
def test_similar_features_are_ordered_by_cosine(study, catalog, run, layer, feature) -> None:
    firing = study.firing()
    mine = firing.pop((run, layer, feature)).astype(np.float64)
    expected = []
    for key, z in firing.items():
        cosine = mine @ z / np.linalg.norm(mine) / np.linalg.norm(z.astype(np.float64))
        expected += [(*key, cosine, int(((mine > 0) & (z > 0)).sum()), int((z > 0).sum()))] if cosine else []
    found = catalog.execute("FROM similar_features(?, ?, ?)", [run, layer, feature]).fetchall()
    assert [row[3] for row in found] == sorted([row[3] for row in found], reverse=True)
    assert_equal(sorted(found), sorted(expected))
    assert len({row[0] for row in found}) == 2


@pytest.mark.parametrize("strings", [BLANKS, WORDS], ids=["tokens with blanks", "words"])
def test_tokens_match_where_a_match_in_the_text_up_to_them_ends(tmp_path: Path, strings: list[str]) -> None:
    tokens = make_corpus(tmp_path, strings)
    build_catalog(tmp_path)
    text = np.array(strings, object)[tokens.take(slice(None)).numpy()].tolist()
    spacing = "" if strings is BLANKS else " "
    stops = [len(spacing.join(row[: i + 1])) for row in text for i in range(CONTEXT)]
    assert {99, 100, 101, 102} < set(stops), "no token ends at the limit"
    counts = {}
    with open_catalog(tmp_path) as catalog:
        assert catalog.sql("SELECT spacing()").fetchall() == [(spacing,)]
        for pattern in PATTERNS:
            expected = [
                i * CONTEXT + j for i, row in enumerate(text) for j in matching(row, spacing, pattern)
            ]
            rows = catalog.execute("FROM tokens_matching(?)", [pattern]).fetchall()
            assert places(rows) == expected, pattern
            assert {row[4] for row in rows} == {text[i // CONTEXT][i % CONTEXT] for i in expected}
            counts[pattern] = len(expected)
    assert [pattern for pattern in PATTERNS if not counts[pattern]] == ["^", "(?s:.{101})", "zebra"]


def test_a_match_has_at_most_100_characters(tmp_path: Path) -> None:
    write_token_table(tmp_path, np.array([[" ", *"x" * 300]], object))
    build_catalog(tmp_path)
    expected = {
        "x{100}": range(100, 301), "x{101}": [], " x{99}": [99], " x{100}": [], "^ x*": range(100), "^x": [],
        r"\bx+": range(1, 101), r"\Bx{100}": range(101, 301), "x{99}$": range(99, 301), "(?s:.{100})": range(99, 301),
    }  # fmt: skip
    with open_catalog(tmp_path) as catalog:
        for pattern, positions in expected.items():
            rows = catalog.execute("FROM tokens_matching(?)", [pattern]).fetchall()
            assert [row[1] for row in rows] == list(positions), pattern


def test_invalid_regular_expressions_are_refused(catalog) -> None:
    for pattern in ("a)|(b", "a)|(b$", "(", "[", "a\\"):
        with pytest.raises(duckdb.Error, match=r"\)|\]|escape|trailing"):
            catalog.execute("FROM tokens_matching(?)", [pattern]).fetchall()


@pytest.mark.parametrize("pattern", ["caught", "w1 ?w1$", r"é[^.]*s\b", ""])
def test_features_on_scores_features_as_classifiers_of_matching_tokens(study, catalog, pattern) -> None:
    wanted = np.zeros(len(study.text), bool)
    for start in range(0, len(study.text), CONTEXT):
        wanted[[start + i for i in matching(list(study.text[start : start + CONTEXT]), "", pattern)]] = True
    expected = []
    for key, z in study.firing().items():
        hits = int((wanted & (z > 0)).sum())
        precision, recall = hits / (z > 0).sum(), hits / wanted.sum()
        expected += (
            [(*key, hits, precision, recall, 2 * precision * recall / (precision + recall))] if hits else []
        )
    found = catalog.execute("FROM features_on(?)", [pattern]).fetchall()
    assert [row[6] for row in found] == sorted([row[6] for row in found], reverse=True)
    assert_equal(sorted(found), sorted(expected))
    assert {row[0] for row in found} == set(RUNS)


@pytest.mark.parametrize(("run", "layer", "feature"), SELECTED)
def test_top_examples_are_the_largest_activations_with_their_context(
    study, catalog, run, layer, feature
) -> None:
    z = study.z[run, layer][feature]
    tokens = np.flatnonzero(z)
    expected = []
    for rank, here in enumerate(tokens[np.lexsort((tokens, -z[tokens]))][: CONFIG.examples]):
        around = [
            i
            for i in range(here - CONFIG.before, here + CONFIG.after + 1)
            if i // CONTEXT == here // CONTEXT and study.document[i] == study.document[here]
        ]
        text = "".join(f"[[{study.text[i]}]]" if i == here else study.text[i] for i in around)
        place = (int(here) // CONTEXT, int(here) % CONTEXT)
        expected.append((rank, z[here], *place, text, list(study.text[around]), z[around].tolist()))
    assert catalog.execute("FROM top_examples(?, ?, ?)", [run, layer, feature]).fetchall() == expected


def test_marked_text_puts_brackets_around_one_token(catalog, tmp_path: Path) -> None:
    ask = "SELECT marked_text(?::VARCHAR[], ?)"
    tokens = ["a", "", "é", "a"]
    assert [catalog.execute(ask, [tokens, i]).fetchall()[0][0] for i in (0, 1, 2, 3, 4)] == [
        "[[a]]éa", "a[[]]éa", "a[[é]]a", "aé[[a]]", "aéa",
    ]  # fmt: skip
    make_corpus(tmp_path, WORDS)
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as words:
        assert words.execute(ask, [tokens, 2]).fetchall() == [("a  [[é]] a",)]


@pytest.mark.parametrize("size", [2, 4])
def test_unpacking_inverts_packing(catalog, size: int) -> None:
    for numbers in (
        [],
        [0],
        [1, 255, 256, 65_535],
        list(range(0, 65_536, 997)),
        [65_536, 2**31 - 1][: size - 2],
    ):
        packed = np.array(numbers, f">u{size}").tobytes()
        assert catalog.execute("SELECT unpacked(?::BLOB, ?)", [packed, len(numbers)]).fetchall() == [
            (numbers,)
        ]


@pytest.mark.parametrize("run", RUNS)
def test_codes_list_the_features_that_fire_on_a_token(study, catalog, run: str) -> None:
    for layer in LAYERS:
        numbers = np.array(list(study.z[run, layer]))
        fires = np.stack(list(study.z[run, layer].values()), 1) > 0
        query = "SELECT sequence, position, n_features, features FROM code WHERE run = ? AND layer = ? ORDER BY ALL"
        rows = catalog.execute(query, [run, layer]).fetchall()
        assert places(rows) == np.flatnonzero(fires.any(1)).tolist()
        assert [row[3] for row in rows] == [numbers[fires[place]].tolist() for place in places(rows)]
        assert all(row[2] == len(row[3]) for row in rows)


def test_features_of_a_concept_are_ordered_by_f1(study, catalog) -> None:
    rows = read_table(study.folder / "evaluation" / "feature_concept.parquet").to_pylist()
    firing, tokens = study.firing(), study.scored.sum()
    expected = []
    for row in rows:
        if row["concept"] == CONCEPTS[0]:
            key = tuple(row[name] for name in ("run", "layer", "feature"))
            z = firing.get(key)
            fires = (
                (None if key[0] == "residual" else 0, None)
                if z is None
                else ((z > 0).sum() / tokens, z.max())
            )
            scores = [row[name] for name in ("sign", "threshold", "precision", "recall", "f1")]
            expected.append((*key, *scores, *fires))
    expected.sort(key=lambda row: (row[7] is None, -(row[7] or 0), row[:3]))
    found = catalog.execute("FROM features_of_concept(?)", [CONCEPTS[0]]).fetchall()
    assert_equal(found, expected)
    assert [row[:3] for row in found] == [row[:3] for row in expected]


def test_runs_are_compared_by_every_metric_that_both_have(study, catalog) -> None:
    rows = read_table(study.folder / "evaluation" / "metric.parquet").to_pylist()
    one, other = ({row["layer"]: row for row in rows if row["run"] == run} for run in RUNS)
    expected = [
        (layer, name, one[layer][name], other[layer][name], one[layer][name] - other[layer][name])
        for layer in sorted(one)
        for name in sorted(one[layer])
        if name not in ("run", "layer") and one[layer][name] is not None
    ]
    found = catalog.execute("FROM compare_runs(?, ?)", list(RUNS)).fetchall()
    assert_equal(found, expected)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    swapped = catalog.execute("FROM compare_runs(?, ?)", list(RUNS)[::-1]).fetchall()
    assert [(row[3], row[2], -row[4]) for row in swapped] == [row[2:] for row in found]


@pytest.mark.parametrize("key", [(RUN, LAYER, FEATURE), (OTHER_RUN, 10, 65_537), (RUN, LAYER, SILENT)])
def test_a_card_lists_every_fact_about_a_feature_in_order(study, catalog, key) -> None:
    run, layer, feature = key
    folder = study.folder / "features" / run / f"layer{layer}"

    def rows(name: str, path: Path = folder) -> list[dict]:
        table = read_table(path / f"{name}.parquet").to_pylist()
        return [row for row in table if (row["run"], row["layer"], row["feature"]) == key]

    (fact,) = rows("feature")
    names = ("max_activation", "mean_activation", "decoder_norm", "encoder_norm", "bias")
    expected = [("density", f"{fact['density']:.4g}"), ("n_tokens", str(fact["n_tokens"]))]
    expected += [(name, f"{fact[name]:.4g}") for name in names if fact[name] is not None]
    for sign, what in ((1, "raises"), (-1, "lowers")):
        effects = [f"{row['token']} ({row['effect']:+.3f})" for row in rows("logit") if row["sign"] == sign]
        expected.append((what, ", ".join(effects)))
    concepts = [row for row in rows("feature_concept", study.folder / "evaluation") if row["f1"]]
    concepts.sort(key=lambda row: (-row["f1"], row["concept"]))
    if concepts:
        expected.append(("concepts", ", ".join(f"{row['concept']} (F1 {row['f1']:.3f})" for row in concepts)))
    for row in sorted(rows("example"), key=lambda row: (row["band"] > 0, -row["band"], row["rank"])):
        if row["rank"] < (1 if row["band"] else 8):
            tokens, here = row["tokens"], row["position"] - row["window_start"]
            text = "".join([*tokens[:here], f"[[{tokens[here]}]]", *tokens[here + 1 :]])
            what = f"band {row['band']}" if row["band"] else f"largest {row['rank']}"
            expected.append((what, f"{row['activation']:8.3f}  {text}"))
    assert catalog.execute("FROM feature_card(?, ?, ?)", [*key]).fetchall() == expected
    assert len(expected) > (7 if feature == SILENT else 14)


def test_every_macro_of_the_catalogue_has_the_comment_that_the_page_lists(catalog) -> None:
    found = catalog.sql("SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal").fetchall()
    comments = dict(found)
    assert len(comments) == len(found) == len(macros()) + 2 and None not in comments.values()
    section = macros_section()
    for macro in macros():
        assert comments[macro.name] == macro.description
        assert f"| `{macro.name}({macro.parameters})` | {macro.description} |" in section


def test_labels_begin_with_what_a_reader_wants(catalog) -> None:
    columns = catalog.sql("FROM labels(NULL, NULL)").columns
    first = ["run", "layer", "feature", "label", "f1", "f1_low", "f1_high", "promoted"]
    assert columns[:8] == first and sorted(columns) == sorted(catalog.sql("FROM label").columns)


def test_every_macro_has_an_example_that_returns_rows(study, catalog) -> None:
    sandbox = open_sandbox(study.folder)
    described = list(macros())
    assert len(described) == 24
    for macro in described:
        assert macro.name in macro.example and macro.description.endswith(".") and macro.parameters
        statement = fill_in(macro.example, FILLED)
        rows = catalog.sql(statement).fetchall()
        assert rows, statement
        assert [
            tuple(row.values()) for row in run_statement(sandbox, statement).read_all().to_pylist()
        ] == rows
