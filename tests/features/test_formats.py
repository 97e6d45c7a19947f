"""Exported features, read by readers that are written from the formats' definitions."""

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.activations.inputs import make_tokens
from tests.models import CONTEXT

from circuitloom.config.model_shape import ModelShape
from circuitloom.core.tables import ACTIVATION, EXAMPLE, FEATURE, HISTOGRAM, LOGIT, write_table
from circuitloom.features.formats.delphi import export_delphi, split_features
from circuitloom.features.formats.feature_texts import FeatureSource, feature_sources
from circuitloom.features.formats.neuronpedia import NeuronpediaNames, export_neuronpedia
from circuitloom.features.formats.viewer import export_viewer_features

RUN, WIDTH = "tc", 7
SILENT, PLAIN, BARE = 0, 2, 5
"""A feature that never fires and has no other rows, a feature with two bands, and one that fires without examples."""
TOKENS = ["<b>", '"', "\n", "⟨E4⟩", "⟨E6⟩⟨97⟩⟨A5⟩", "\x00", "é", ""]
TEXTS = ["<b>", '"', "\n", "⟨E4⟩", "日", "\x00", "é", ""]
SHAPE = ModelShape(2, 16, 40, 4, 32, 64)
NAMES = NeuronpediaNames("a-model", "tc-set", "someone", "a-release")


def write_tables(folder: Path, layer: int = 1, shift: float = 0.0) -> Path:
    """Tables of 7 features; features 1, 3, 4 and 6 have one example each."""
    own = {"run": RUN, "layer": layer}
    fires = {PLAIN: 40, BARE: 3, **dict.fromkeys((1, 3, 4, 6), 1)}
    features = [
        own | {"feature": f, "n_tokens": fires.get(f, 0), "density": fires.get(f, 0) / 160, "alive": f in fires,
               "max_activation": 2.1 + shift if f in fires else None, "decoder_norm": 1.0}
        for f in range(WIDTH)
    ]  # fmt: skip
    examples = []
    for feature, band, rank, values in (
        (PLAIN, 0, 0, [0.0, 0.1, 2.1, 2.1, 0.0, 0.0, 0.0, 0.0]),
        (PLAIN, 0, 1, [0.0, 0.0, 1e-7]),
        (PLAIN, 1, 0, [0.0, 0.0, 0.25, 0.0]),
        (PLAIN, 2, 0, [0.0, 0.0, 1.5, 0.5]),
        *((f, 0, 0, [0.0, 0.0, 2.1]) for f in (1, 3, 4, 6)),
    ):
        examples.append(
            own | {"feature": feature, "band": band, "rank": rank, "sequence": 3, "position": 12, "window_start": 10,
                   "activation": values[2], "tokens": TOKENS[: len(values)], "activations": values,
                   "band_low": (band - 1) * 1.05 if band else 1e-7, "band_high": band * 1.05 if band else 2.1,
                   "band_share": 0.5}
        )  # fmt: skip
    logits = [
        own | {"feature": f, "sign": sign, "rank": rank, "token_id": rank, "token": TOKENS[4 * (sign < 0) + rank],
               "effect": sign * (0.5 - rank / 8)}
        for f in range(WIDTH) if f != SILENT for sign in (1, -1) for rank in range(2)
    ]  # fmt: skip
    bins = [
        own | {"feature": PLAIN, "bin": b, "low": b * 0.7, "high": (b + 1) * 0.7, "n_tokens": n}
        for b, n in ((0, 30), (2, 10))
    ]  # fmt: skip
    random = np.random.default_rng(layer)
    activations = [
        own | {"feature": f, "sequence": int(place) // CONTEXT, "position": int(place) % CONTEXT,
               "activation": float(np.float32(random.exponential()))}
        for f, n in sorted(fires.items()) for place in np.sort(random.choice(5 * CONTEXT, n, replace=False))
    ]  # fmt: skip
    tables = ((FEATURE, features), (HISTOGRAM, bins), (EXAMPLE, examples), (LOGIT, logits))
    for table, rows in (*tables, (ACTIVATION, activations)):
        write_table(table, rows, folder / RUN / f"layer{layer}" / f"{table.name}.parquet")
    return folder


def make_source(folder: Path, layer: int = 1, spacing: str = "", per_part: int = 3) -> FeatureSource:
    return FeatureSource(folder / RUN / f"layer{layer}", RUN, layer, spacing, per_part)


def read_viewer(folder: Path, layer: int, feature: int) -> dict[str, Any]:
    """A record, as the viewer reads it."""
    index = json.loads(gzip.decompress((folder / "features" / "index.json.gz").read_bytes()))[str(layer)]
    start, stop = index["offsets"][feature : feature + 2]
    record = (folder / "features" / index["filename"]).read_bytes()[start:stop]
    (length,) = struct.unpack("<I", record[:4])
    assert length == len(record) - 4
    return json.loads(zlib.decompress(record[4:]))


def test_the_viewer_reads_each_feature_at_its_offset(tmp_path) -> None:
    tables = write_tables(write_tables(tmp_path / "features"), 0)
    export_viewer_features([make_source(tables, layer) for layer in (0, 1)], tmp_path / "out")
    index = json.loads(gzip.decompress((tmp_path / "out" / "features" / "index.json.gz").read_bytes()))
    assert set(index) == {"0", "1"}
    for layer in (0, 1):
        offsets = index[str(layer)]["offsets"]
        assert len(offsets) == WIDTH + 1 and offsets[0] == 0
        assert offsets[-1] == (tmp_path / "out" / "features" / f"layer_{layer}.bin").stat().st_size
        for feature in range(WIDTH):
            assert read_viewer(tmp_path / "out", layer, feature)["index"] == feature


def test_a_record_has_the_examples_logits_and_histogram_of_its_feature(tmp_path) -> None:
    export_viewer_features([make_source(write_tables(tmp_path / "features"))], tmp_path / "out")
    record = read_viewer(tmp_path / "out", 1, PLAIN)
    names = [quantile["quantile_name"] for quantile in record["examples_quantiles"]]
    assert names == ["Top activations", "Activations 1.05 to 2.1", "Activations 0 to 1.05"]
    top, middle, low = (quantile["examples"] for quantile in record["examples_quantiles"])
    assert (len(top), len(middle), len(low)) == (2, 1, 1)
    assert top[0] == {
        "tokens_acts_list": [0, 0.1, 2.1, 2.1, 0, 0, 0, 0], "train_token_ind": 2, "is_repeated_datapoint": False,
        "tokens": TEXTS,
    }  # fmt: skip
    assert top[1]["tokens_acts_list"] == [0, 0, 1e-7]
    assert middle[0]["tokens_acts_list"] == [0, 0, 1.5, 0.5]
    assert (record["top_logits"], record["bottom_logits"]) == (TEXTS[:2], TEXTS[4:6])
    assert (record["act_min"], record["act_max"]) == (0, 2.1)
    assert record["histogram"] == [30, 0, 10]
    assert record["quantile_values"] == pytest.approx([0.35, 1.05, 1.75])
    assert record["activation_frequency"] == 0.25


def test_features_without_rows_have_empty_records(tmp_path) -> None:
    export_viewer_features([make_source(write_tables(tmp_path / "features"))], tmp_path / "out")
    silent, bare = (read_viewer(tmp_path / "out", 1, feature) for feature in (SILENT, BARE))
    assert silent["examples_quantiles"] == bare["examples_quantiles"] == []
    assert silent["histogram"] == silent["top_logits"] == silent["bottom_logits"] == []
    assert (silent["act_max"], silent["activation_frequency"]) == (0, 0)
    assert (bare["act_max"], bare["activation_frequency"]) == (2.1, 3 / 160)


def test_words_are_written_with_a_space_before_them(tmp_path) -> None:
    source = make_source(write_tables(tmp_path / "features"), spacing=" ")
    export_viewer_features([source], tmp_path / "out")
    example = read_viewer(tmp_path / "out", 1, PLAIN)["examples_quantiles"][0]["examples"][0]
    assert example["tokens"] == [f" {text}" for text in TEXTS]


def test_a_layer_does_not_depend_on_the_parts_in_which_it_is_written(tmp_path) -> None:
    tables = write_tables(tmp_path / "features")
    found = set()
    for per_part in (1, 3, 7, 100):
        output = tmp_path / str(per_part)
        export_viewer_features([make_source(tables, per_part=per_part)], output)
        found.add((output / "features" / "layer_1.bin").read_bytes())
        assert {file.name for file in (output / "features").iterdir()} == {"layer_1.bin", "index.json.gz"}
    assert len(found) == 1


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


class StoppedError(Exception):
    pass


class StoppingSource(FeatureSource):
    """Stops when the second part is read; `parts_read` counts."""

    def read(self, features: range):
        if features.start == 3:
            raise StoppedError
        return super().read(features)


def stopping(source: FeatureSource) -> FeatureSource:
    return StoppingSource(source.folder, source.run, source.layer, source.spacing, source.per_part)


def test_an_interrupted_layer_keeps_its_complete_parts_and_ends_with_the_same_bytes(tmp_path) -> None:
    source = make_source(write_tables(tmp_path / "features"))
    export_viewer_features([source], tmp_path / "whole")
    output = tmp_path / "out"
    with pytest.raises(StoppedError):
        export_viewer_features([stopping(source)], output)
    part = output / "features" / "layer_1.bin.partial" / "part000000"
    before = part.stat().st_mtime_ns
    assert not (output / "features" / "layer_1.bin").exists()
    with pytest.raises(StoppedError):
        export_viewer_features([stopping(source)], output)
    assert part.stat().st_mtime_ns == before
    export_viewer_features([source], output)
    assert {name: data for name, (_, data) in files(output).items()} == {
        name: data for name, (_, data) in files(tmp_path / "whole").items()
    }


def test_a_complete_export_is_not_written_again_unless_its_tables_changed(tmp_path, capsys) -> None:
    tables = write_tables(tmp_path / "features")
    tokens = make_tokens(5)

    def export() -> dict[str, tuple[int, bytes]]:
        source = make_source(tables)
        export_viewer_features([source], tmp_path / "out")
        export_neuronpedia([source], tmp_path / "out", NAMES, SHAPE)
        export_delphi([source], tmp_path / "out", tokens, {1: "layers.1.mlp"}, "a/model")
        return files(tmp_path / "out")

    first = export()
    capsys.readouterr()
    assert export() == first
    assert capsys.readouterr().err.count("is complete") == 3
    write_tables(tables, shift=1.0)
    changed = export()
    assert read_viewer(tmp_path / "out", 1, PLAIN)["act_max"] == pytest.approx(3.1)
    assert set(changed) == set(first)
    assert changed["features/layer_1.bin"] != first["features/layer_1.bin"]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    found = sorted(folder.glob("batch-*.jsonl.gz"), key=lambda file: int(file.name[6:-9]))
    return [
        json.loads(line)
        for file in found
        for line in gzip.decompress(file.read_bytes()).decode().splitlines()
    ]


TEXT, NUMBER, INT, TRUTH = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
TEXT_LIST, NUMBER_LIST = ({"type": "array", "items": kind} for kind in (TEXT, NUMBER))
SHARED = {"creatorId": TEXT, "createdAt": TEXT}
PLACE = {"modelId": TEXT, "layer": TEXT, "index": TEXT, **SHARED}
VISIBLE = {**SHARED, "visibility": {"enum": ["PUBLIC", "PRIVATE", "UNLISTED"]}}
MODELS: dict[str, dict[str, Any]] = {
    # the columns of apps/webapp/prisma/schema.prisma that the export fills; every one without a default is among them
    "release": {
        **VISIBLE, "name": TEXT, "description": TEXT, "descriptionShort": TEXT, "creatorName": TEXT,
        "creatorNameShort": TEXT, "urls": TEXT_LIST, "defaultSourceSetName": TEXT,
    },
    "model": {
        **VISIBLE, "id": TEXT, "displayName": TEXT, "displayNameShort": TEXT, "instruct": TRUTH, "layers": INT,
        "neuronsPerLayer": INT, "dimension": INT, "owner": TEXT, "updatedAt": TEXT, "inferenceEnabled": TRUTH,
    },
    "sourceset": {
        **VISIBLE, "modelId": TEXT, "name": TEXT, "description": TEXT, "creatorName": TEXT, "releaseName": TEXT,
        "urls": TEXT_LIST,
    },
    "source": {**VISIBLE, "id": TEXT, "modelId": TEXT, "setName": TEXT, "inferenceEnabled": TRUTH},
    "features": {
        **PLACE, "maxActApprox": NUMBER, "hasVector": TRUTH, "pos_str": TEXT_LIST, "pos_values": NUMBER_LIST,
        "neg_str": TEXT_LIST, "neg_values": NUMBER_LIST, "frac_nonzero": NUMBER,
        "freq_hist_data_bar_values": NUMBER_LIST, "freq_hist_data_bar_heights": NUMBER_LIST,
    },
    "activations": {
        **PLACE, "id": TEXT, "tokens": TEXT_LIST, "values": NUMBER_LIST, "maxValue": NUMBER, "maxValueTokenIndex": INT,
        "minValue": NUMBER, "binMin": NUMBER, "binMax": NUMBER, "binContains": NUMBER, "qualifyingTokenIndex": INT,
        "dfaValues": NUMBER_LIST, "lossValues": NUMBER_LIST,
    },
}  # fmt: skip


def check(table: str, row: dict[str, Any]) -> None:
    fields = MODELS[table]
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    jsonschema.validate(row, schema)


def test_a_dump_has_the_columns_of_neuronpedias_tables(tmp_path) -> None:
    export_neuronpedia([make_source(write_tables(tmp_path / "features"))], tmp_path / "out", NAMES, SHAPE)
    folder = tmp_path / "out" / "v1" / "a-model" / "1-tc-set"
    for table in ("release", "model", "sourceset", "source"):
        check(table, json.loads((folder / f"{table}.jsonl").read_text()))
    source = json.loads((folder / "source.jsonl").read_text())
    assert (source["id"], source["modelId"], source["setName"]) == ("1-tc-set", "a-model", "tc-set")
    model = json.loads((folder / "model.jsonl").read_text())
    assert (model["layers"], model["neuronsPerLayer"], model["dimension"]) == (2, 40, 16)
    for table in ("features", "activations"):
        for row in read_lines(folder / table):
            check(table, row)
            assert (row["modelId"], row["layer"]) == ("a-model", "1-tc-set")
    assert [file.name for file in sorted((folder / "features").iterdir())] == [
        f"batch-{i}.jsonl.gz" for i in range(3)
    ]
    assert not (folder / "explanations").exists()


def test_a_dump_has_every_feature_once_and_its_examples(tmp_path) -> None:
    export_neuronpedia([make_source(write_tables(tmp_path / "features"))], tmp_path / "out", NAMES, SHAPE)
    folder = tmp_path / "out" / "v1" / "a-model" / "1-tc-set"
    features = read_lines(folder / "features")
    assert [row["index"] for row in features] == [str(i) for i in range(WIDTH)]
    plain = features[PLAIN]
    assert (plain["maxActApprox"], plain["frac_nonzero"]) == (2.1, 0.25)
    assert (plain["pos_str"], plain["pos_values"]) == (TEXTS[:2], [0.5, 0.375])
    assert (plain["neg_str"], plain["neg_values"]) == (TEXTS[4:6], [-0.5, -0.375])
    assert plain["freq_hist_data_bar_heights"] == [30, 0, 10]
    assert (features[SILENT]["maxActApprox"], features[SILENT]["pos_str"]) == (0, [])
    activations = read_lines(folder / "activations")
    assert len({row["id"] for row in activations}) == len(activations) == 8
    mine = [row for row in activations if row["index"] == str(PLAIN)]
    first, _, low, high = mine
    assert (first["tokens"], first["values"]) == (TEXTS, [0, 0.1, 2.1, 2.1, 0, 0, 0, 0])
    # the first of the largest; -1 marks the largest activations of a feature
    assert (first["maxValue"], first["maxValueTokenIndex"], first["minValue"]) == (2.1, 2, 0)
    assert (first["binMin"], first["binContains"], first["qualifyingTokenIndex"]) == (-1, -1, 2)
    assert (low["binMin"], low["binMax"], low["binContains"]) == (0, pytest.approx(1.05), 0.5)
    assert (high["maxValue"], high["minValue"]) == (1.5, 0)


def test_labels_become_explanations(tmp_path) -> None:
    labels = {(1, PLAIN): 'fires on "<b>"', (0, 3): "of another layer"}
    source = make_source(write_tables(tmp_path / "features"))
    export_neuronpedia([source], tmp_path / "out", NAMES, SHAPE, labels)
    (row,) = read_lines(tmp_path / "out" / "v1" / "a-model" / "1-tc-set" / "explanations")
    assert (row["index"], row["layer"], row["modelId"]) == (str(PLAIN), "1-tc-set", "a-model")
    assert row["description"] == 'fires on "<b>"' and row["authorId"] and row["id"]


@pytest.mark.parametrize("names", [{"model": "a/model"}, {"source_set": "a set"}, {"release": ""}])
def test_names_that_neuronpedia_does_not_accept_are_refused(names) -> None:
    with pytest.raises(ValueError, match="use letters, digits, -"):
        NeuronpediaNames(**{**vars(NAMES), **names})


def read_delphi(folder: Path) -> tuple[dict[int, list[tuple[int, int, float]]], list[np.ndarray]]:
    """Activations of each feature, and the tokens of each file, as delphi's loader reads them."""
    found: dict[int, list[tuple[int, int, float]]] = {}
    tokens, edge = [], 0
    for file in sorted(folder.glob("*.safetensors"), key=lambda file: int(file.stem.split("_")[0])):
        start, stop = map(int, file.stem.split("_"))
        assert start == edge
        edge = stop + 1
        split = load_file(file)
        locations = split["locations"].astype(np.int64)
        assert len(locations) == len(split["activations"]) > 0
        assert (np.diff(locations[:, 2]) >= 0).all() and locations[:, 2].max() + start <= stop
        for (sequence, position, feature), value in zip(
            locations.tolist(), split["activations"].tolist(), strict=True
        ):
            found.setdefault(feature + start, []).append((sequence, position, value))
        tokens.append(split["tokens"].astype(np.int64))
    assert edge == WIDTH
    return found, tokens


def test_delphi_reads_every_activation_and_the_tokens(tmp_path) -> None:
    tables, tokens = write_tables(tmp_path / "features"), make_tokens(9)
    source = make_source(tables)
    export_delphi([source], tmp_path / "out", tokens, {1: "layers.1.mlp"}, "a/model", per_split=10)
    module = tmp_path / "out" / "latents" / "layers.1.mlp"
    found, read = read_delphi(module)
    random = np.random.default_rng(1)
    for feature, n in ((1, 1), (PLAIN, 40), (3, 1), (4, 1), (BARE, 3), (6, 1)):
        places = np.sort(random.choice(5 * CONTEXT, n, replace=False))
        expected = [
            (*divmod(int(place), CONTEXT), float(np.float32(random.exponential()))) for place in places
        ]
        assert found.pop(feature) == expected
    assert not found
    assert len(read) == 3
    used = 1 + max(int(place) for place in np.random.default_rng(1).choice(5 * CONTEXT, 1)) // CONTEXT
    for token in read:
        assert used <= len(token) <= 5
        assert (token == tokens.take(slice(len(token))).numpy()).all()
    config = json.loads((module / "config.json").read_text())
    assert (config["cache_ctx_len"], config["model_name"], config["n_splits"]) == (CONTEXT, "a/model", 3)
    assert config["n_tokens"] == read[0].size
    # delphi takes every entry of the folder for a module
    assert [entry.name for entry in (tmp_path / "out" / "latents").iterdir()] == ["layers.1.mlp"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 1, 1, 1], [range(2), range(2, 4)]),
        ([0, 0, 9, 0, 0], [range(5)]),
        ([9, 9, 0], [range(1), range(1, 3)]),
        ([0, 2, 0, 1, 0], [range(3), range(3, 5)]),
        ([1], [range(1)]),
    ],
)
def test_every_file_of_delphi_has_activations(counts, expected) -> None:
    parts = split_features(np.array(counts), 2)
    assert parts == expected
    assert all(sum(counts[feature] for feature in part) for part in parts)


def test_a_layer_in_which_nothing_fires_is_refused(tmp_path) -> None:
    row = {"run": RUN, "layer": 1, "feature": 0, "n_tokens": 0, "density": 0.0, "alive": False}
    folder = tmp_path / RUN / "layer1"
    for table, rows in ((FEATURE, [row]), (ACTIVATION, []), (HISTOGRAM, []), (EXAMPLE, []), (LOGIT, [])):
        write_table(table, rows, folder / f"{table.name}.parquet")
    with pytest.raises(ValueError, match="no feature of layer 1 fires"):
        export_delphi([make_source(tmp_path)], tmp_path / "out", make_tokens(2), {1: "m"}, "a/model")


def test_a_run_is_chosen_or_must_be_named(tmp_path) -> None:
    tables = write_tables(write_tables(tmp_path / "features"), 0)
    assert [source.layer for source in feature_sources(tables, None, None, "", ("neurons",))] == [0, 1]
    assert [source.layer for source in feature_sources(tables, RUN, [1], "", ())] == [1]
    with pytest.raises(ValueError, match=r"tc has no feature tables of layer 4; choose from \[0, 1\]"):
        feature_sources(tables, None, [4], "", ())
    with pytest.raises(ValueError, match="other has no feature tables; choose from tc"):
        feature_sources(tables, "other", None, "", ())
    (tables / RUN).rename(tables / "a")
    write_tables(tables)
    with pytest.raises(ValueError, match="name a run with --run: a, tc"):
        feature_sources(tables, None, None, "", ())
    assert [source.run for source in feature_sources(tables, None, None, "", ("a",))] == [RUN]


def test_a_missing_table_is_named(tmp_path) -> None:
    tables = write_tables(tmp_path / "features")
    (tables / RUN / "layer1" / "logit.parquet").unlink()
    with pytest.raises(ValueError, match=r"logit\.parquet is missing"):
        export_viewer_features([make_source(tables)], tmp_path / "out")


def test_a_folder_of_something_else_is_not_overwritten(tmp_path) -> None:
    tables = write_tables(tmp_path / "features")
    mine = tmp_path / "out" / "v1" / "a-model" / "1-tc-set" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="is no export of this command"):
        export_neuronpedia([make_source(tables)], tmp_path / "out", NAMES, SHAPE)
    assert mine.read_text() == "mine"
