"""The streamed tables equal those of sorting all activations in memory, for every size of blocks and batches."""

from dataclasses import replace

import numpy as np
import pytest
from tests.features.inputs import CONFIG, LAYER, STRINGS, WIDTH, make_basis, write
from tests.models import CONTEXT

from circuitloom.core.tables import TABLES
from circuitloom.features import external_sort


@pytest.fixture(
    scope="module", params=[(2**16, 2**22), (4 * CONTEXT, 2**22), (2 * CONTEXT, 300), (CONTEXT, 50)]
)
def case(request, model, tmp_path_factory):
    """One block; several blocks; also several feature ranges; also several batches of a single feature."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "BLOCK_POSITIONS", request.param[0])
        patch.setattr(external_sort, "MAX_ENTRIES", request.param[1])
        return write(model, tmp_path_factory.mktemp("features"))


def bin_of(fires: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each activation, in bins of equal width from 0 to the largest."""
    return np.minimum((fires.astype(np.float64) * bins / (fires.max(initial=0) or 1)).astype(int), bins - 1)


def test_the_table_of_activations_holds_all_of_them_ordered_by_feature_and_token(case):
    feature, token = case.z.T.nonzero()
    table = case.tables["activation"]
    assert np.array_equal(table["feature"].to_numpy(), feature)
    assert np.array_equal(table["sequence"].to_numpy() * CONTEXT + table["position"].to_numpy(), token)
    assert np.array_equal(table["activation"].to_numpy(), case.z[token, feature])
    assert set(table["run"].to_pylist()) == {"tied"} and set(table["layer"].to_pylist()) == {LAYER}


def test_the_bos_never_fires(case):
    token = case.tokens.take(slice(None)).flatten().numpy()
    table = case.tables["activation"]
    assert (token[table["sequence"].to_numpy() * CONTEXT + table["position"].to_numpy()] != 1).all()


def test_codes_are_the_same_activations_by_token(case):
    rows = case.tables["code"].to_pylist()
    found = {row["sequence"] * CONTEXT + row["position"]: np.frombuffer(row["packed"], ">u2") for row in rows}
    assert list(found) == np.flatnonzero(case.z.any(1)).tolist()
    for row, (token, features) in zip(rows, found.items(), strict=True):
        assert np.array_equal(features, np.flatnonzero(case.z[token]))
        assert row["n_features"] == len(features)


def test_statistics_are_those_of_all_activations(case):
    rows = case.rows("feature")
    scored = int((case.tokens.take(slice(None)) != 1).sum())
    assert [row["feature"] for row in rows] == list(range(WIDTH))
    for row, z in zip(rows, case.z.T, strict=True):
        fires = z[z > 0].astype(np.float64)
        assert row["n_tokens"] == len(fires) and row["alive"] == (len(fires) > 0)
        assert row["density"] == pytest.approx(len(fires) / scored)
        if len(fires):
            assert row["max_activation"] == fires.max()
            assert row["mean_activation"] == pytest.approx(fires.mean())
            assert row["rms_activation"] == pytest.approx(np.sqrt((fires**2).mean()))
        else:
            assert row["max_activation"] is row["mean_activation"] is row["rms_activation"] is None
    assert not rows[3]["alive"] and rows[4]["density"] == 1


def test_histograms_count_every_activation_once(case):
    for feature, z in enumerate(case.z.T):
        fires = z[z > 0]
        rows = case.rows("histogram", feature=feature)
        numbers, counts = np.unique(bin_of(fires, CONFIG.bins), return_counts=True)
        assert [(row["bin"], row["n_tokens"]) for row in rows] == list(
            zip(numbers.tolist(), counts.tolist(), strict=True)
        )
        for row in rows:
            assert row["high"] - row["low"] == pytest.approx(fires.max() / CONFIG.bins, rel=1e-5)


def test_the_largest_examples_equal_those_of_sorting_all_activations(case):
    for feature, z in enumerate(case.z.T):
        tokens = np.flatnonzero(z)
        expected = tokens[np.lexsort((tokens, -z[tokens]))][: CONFIG.examples]
        rows = case.rows("example", feature=feature, band=0)
        assert [row["rank"] for row in rows] == list(range(len(expected)))
        assert [row["sequence"] * CONTEXT + row["position"] for row in rows] == expected.tolist()
        assert [row["activation"] for row in rows] == z[expected].tolist()
        for row in rows:
            assert (row["band_low"], row["band_high"]) == (z[expected].min(), z.max())
            assert row["band_share"] == pytest.approx(len(expected) / len(tokens))


def test_bands_are_sampled_evenly_over_the_text(case):
    for feature, z in enumerate(case.z.T):
        tokens = np.flatnonzero(z)
        band = np.minimum(
            (z[tokens].astype(np.float64) * CONFIG.bands / z.max(initial=1)).astype(int), CONFIG.bands - 1
        )
        for number in range(CONFIG.bands):
            inside = tokens[band == number]
            n, wanted = len(inside), CONFIG.band_examples
            sample = (
                inside if n <= wanted else inside[[(2 * j + 1) * n // (2 * wanted) for j in range(wanted)]]
            )
            expected = sample[np.lexsort((sample, -z[sample]))]
            rows = case.rows("example", feature=feature, band=number + 1)
            assert [row["sequence"] * CONTEXT + row["position"] for row in rows] == expected.tolist()
            for rank, row in enumerate(rows):
                assert row["rank"] == rank
                assert row["band_share"] == pytest.approx(n / len(tokens))
                assert row["band_low"] <= row["activation"] <= row["band_high"]


def test_windows_stay_in_their_document_and_sequence(case):
    token, document = (
        x.flatten().numpy() for x in (case.tokens.take(slice(None)), case.tokens.take_document(slice(None)))
    )
    cut = 0
    for row in case.rows("example"):
        here = row["sequence"] * CONTEXT + row["position"]
        around = [
            t
            for t in range(here - CONFIG.before, here + CONFIG.after + 1)
            if t // CONTEXT == here // CONTEXT and document[t] == document[here]
        ]
        cut += len(around) < CONFIG.before + 1 + CONFIG.after
        assert row["window_start"] == around[0] % CONTEXT
        assert row["tokens"] == [STRINGS[t] for t in token[around]]
        assert row["activations"] == case.z[around, row["feature"]].tolist()
    assert cut > 50


def test_tables_have_their_schemas(case):
    schemas = {table.name: table.schema for table in TABLES}
    assert all(table.schema.equals(schemas[name]) for name, table in case.tables.items())
    assert all(table.num_rows for table in case.tables.values())


def test_a_dictionary_that_never_fires_has_empty_tables(model, tmp_path):
    nothing = make_basis(model).encode

    def silent(x):
        return tuple(column[:0] for column in nothing(x))

    case = write(model, tmp_path, replace(make_basis(model), encode=silent))
    assert [case.tables[name].num_rows for name in ("activation", "code", "example", "histogram")] == [0] * 4
    assert case.tables["feature"].num_rows == WIDTH and not any(row["alive"] for row in case.rows("feature"))
