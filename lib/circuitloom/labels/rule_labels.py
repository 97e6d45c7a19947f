"""Labels the features of a run without a language model, and scores the labels: the table `label`, layer by layer.

For each feature three labels are scored on the scoring half of the documents: the best description (`learning`), the
token on which it fires most often, and in generated text the planted concept that fits best. The last two are there to
compare with. A description of a feature upstream is tried for the features that it is connected to (table
`connection`), and the tokens that raise a feature by the weights alone are tried too (table `deembedding`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from ..config.labels import Labels
from ..core.feature_labels import UNDESCRIBED
from ..core.layout import FREQUENT, PLANTED, RULE
from ..core.progress import progress
from ..core.tables import LABEL, read_table, table_writer
from .conditions import Description, TokenAt
from .firings import Neighbours, hard_negatives, read_firings
from .learning import MAX_TOKENS, Learner, ScoredDescription, SearchSettings, near_of
from .scores import Truth
from .text import LabelText, shown

NO_DESCRIPTION = "nothing describes it"
"""Label of a feature that no description fits."""
CHUNK = 64
"""Number of features that a process labels at once."""
SOURCES = 3
"""Number of connected features per kind of connection whose descriptions are tried."""


@dataclass(frozen=True)
class LayerTables:
    """Files of one layer: its feature tables, and of a traced run its connections and de-embeddings."""

    activation: Path
    feature: Path
    logit: Path
    connection: Path | None = None
    deembedding: Path | None = None


def layer_tables(files: Iterable[Path | str]) -> dict[int, LayerTables]:
    """Returns the tables of each layer, given files layerL/TABLE.parquet."""
    found: dict[int, dict[str, Path]] = {}
    for file in map(Path, files):
        found.setdefault(int(file.parent.name.removeprefix("layer")), {})[file.stem] = file
    return {layer: LayerTables(**tables) for layer, tables in found.items()}


@dataclass(frozen=True)
class PlantedConcepts:
    """Planted concepts at the positions of both halves."""

    names: Sequence[str]
    learning: Bool[np.ndarray, "position concept"]
    scoring: Bool[np.ndarray, "position concept"]

    @cached_property
    def _totals(self) -> Int[np.ndarray, " concept"]:
        return self.learning.sum(0)

    def best(self, fires: Int[np.ndarray, " firing"]) -> tuple[int, float]:
        """Returns the concept that tells with the highest F1 where a feature fires on the learning half, and the F1."""
        f1 = 2 * self.learning[fires].sum(0) / (len(fires) + self._totals)
        best = int(f1.argmax())
        return best, float(f1[best])


def read_planted(path: Path, context: int, text: LabelText) -> PlantedConcepts | None:
    """Returns the concepts of a table `concept`, or None if it has none. Raises ValueError if it is damaged."""
    rows = read_table(path, columns=["concept", "sequence", "position"])
    if not rows.num_rows:
        return None
    names, number = np.unique(rows.column("concept").cast(pa.string()).to_numpy(), return_inverse=True)
    index = rows.column("sequence").to_numpy().astype(np.int64) * context + rows.column("position").to_numpy()
    order = np.argsort(index, kind="stable")
    halves = []
    for half in (text.learning, text.scoring):
        found = np.zeros((len(half), len(names)), bool)
        place = np.searchsorted(half.index, index[order])
        inside = place < len(half)
        inside[inside] = half.index[place[inside]] == index[order][inside]
        found[place[inside], number[order][inside]] = True
        halves.append(found)
    return PlantedConcepts(names.tolist(), *halves)


def write_rule_labels(
    run: str,
    layers: Mapping[int, LayerTables],
    text: LabelText,
    context: int,
    planted: PlantedConcepts | None,
    config: Labels,
    paths: Mapping[int, Path],
    processes: int = 1,
) -> None:
    """Write the table `label` of each layer to paths[layer], from the first layer on.

    `text` has `context` tokens per sequence. The labels do not depend on the number of processes. Raises ValueError if
    a table is damaged.
    """
    learner = Learner(text, SearchSettings(config.cost, config.beam, config.steps))
    known: dict[tuple[int, int], Description] = {}
    total = sum(pq.read_metadata(files.feature).num_rows for files in layers.values())
    with progress(f"labels: {run}", total, "features") as bar:
        for layer, files in sorted(layers.items()):
            labeller = _Labeller(files, learner, context, planted, config, known)
            with table_writer(LABEL, paths[layer]) as writer:
                for features, (rows, descriptions) in labeller.run(processes):
                    known |= {(layer, feature): each for feature, each in descriptions.items()}
                    writer.write_table(_table(run, layer, rows))
                    bar.update(len(features))


def _table(run: str, layer: int, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns rows of the table `label`. Scores that are NaN, empty lists and what is left out become null."""
    complete = [{**row, "run": run, "layer": layer, "promoted": row.get("promoted") or None} for row in rows]
    columns = [
        pa.array([row.get(field.name) for row in complete], field.type, from_pandas=True)
        for field in LABEL.schema
    ]
    return pa.Table.from_arrays(columns, schema=LABEL.schema)


Chunk = tuple[list[dict[str, Any]], dict[int, Description]]
"""Rows of some features, and their descriptions."""


class _Labeller:
    """Labels the features of one layer."""

    def __init__(
        self,
        files: LayerTables,
        learner: Learner,
        context: int,
        planted: PlantedConcepts | None,
        config: Labels,
        known: Mapping[tuple[int, int], Description],
    ) -> None:
        self.learner, self.planted, self.config = learner, planted, config
        text = learner.text
        self.width = pq.read_metadata(files.feature).num_rows
        self.learning, self.scoring = read_firings(files.activation, self.width, context, text)
        self.neighbours = Neighbours(self.learning, len(text.names) + 1)
        self.promoted = _units(files.logit, text)
        self.upstream = _upstream(files, text, known)

    def run(self, processes: int) -> Iterator[tuple[range, Chunk]]:
        """Yield the features of each chunk with their rows, in order."""
        # found once, before the processes start
        _ = self.neighbours.similar
        chunks = [range(low, min(self.width, low + CHUNK)) for low in range(0, self.width, CHUNK)]
        if processes == 1:
            yield from zip(chunks, map(self.label, chunks), strict=True)
            return
        # processes that are forked from this one share its arrays
        _SHARED[:] = [self]
        with ProcessPoolExecutor(processes, get_context("fork")) as pool:
            yield from zip(chunks, pool.map(_label, chunks), strict=True)

    def label(self, features: range) -> Chunk:
        """Returns the rows of some features."""
        rows: list[dict[str, Any]] = []
        descriptions: dict[int, Description] = {}
        for feature in features:
            fires = self.learning.of(feature)
            if not len(fires) and not len(self.scoring.of(feature)):
                continue
            found = self._described(feature) if len(fires) else None
            if found:
                descriptions[feature] = found.description
            rows += self._rows(feature, found)
        return rows, descriptions

    def _described(self, feature: int) -> ScoredDescription:
        return self.learner.learn(
            self.learning.of(feature),
            self.promoted.get(feature, [])[:MAX_TOKENS],
            self.upstream.get(feature, []),
        )

    def _rows(self, feature: int, found: ScoredDescription | None) -> Iterator[dict[str, Any]]:
        """Yield the rows of a feature: of its description, its most frequent token, and the best planted concept."""
        text, fires = self.learner.text, self.learning.of(feature)
        truth = self._truth(feature)
        n = int(np.count_nonzero(truth.fires))
        shared = {"feature": feature, "n_tokens": n, "n_judged": len(truth.fires)}
        if found is None:
            # it fires on no document from which labels are learned
            yield {**shared, "label": NO_DESCRIPTION, "source": RULE, "kind": UNDESCRIBED}
            return
        where = found.description.where(text.scoring, text)
        f1_learning = 2 * found.hits / (len(fires) + found.predicted)
        scores = truth.f1(where)
        f1 = scores["f1"]
        # without a score, which a feature that fires on no scoring document lacks, that of learning decides
        described = (f1_learning if f1 is None or np.isnan(f1) else f1) >= self.config.described
        yield {
            **shared,
            "label": found.description.text(text) if described else NO_DESCRIPTION,
            "source": RULE,
            "kind": found.description.kind if described else UNDESCRIBED,
            "promoted": [text.names[unit] for unit in found.description.promoted] if described else [],
            "f1_learning": f1_learning,
            **scores,
            **truth.accuracies(where),
        }
        counts = np.bincount(text.learning.unit(0)[fires], minlength=1)
        frequent = Description((TokenAt(0, (int(counts.argmax()),)),))
        yield {
            **shared,
            "label": frequent.text(text),
            "source": FREQUENT,
            "kind": frequent.kind,
            **truth.f1(frequent.where(text.scoring, text)),
        }
        if self.planted:
            concept, f1_learning = self.planted.best(fires)
            yield {
                **shared,
                "label": self.planted.names[concept],
                "source": PLANTED,
                "kind": "concept",
                "f1_learning": f1_learning,
                **truth.f1(np.flatnonzero(self.planted.scoring[:, concept])),
            }

    def _truth(self, feature: int) -> Truth:
        half = self.scoring.half
        fires = np.zeros(len(half), bool)
        fires[self.scoring.of(feature)] = True
        hard = hard_negatives(feature, self.scoring, self.neighbours)
        return Truth(fires, hard, self.scoring.near(feature), half.document, half.document_tokens)


_SHARED: list[_Labeller] = []
"""The labeller whose features forked processes label."""


def _label(features: range) -> Chunk:
    return _SHARED[-1].label(features)


def _units(path: Path | None, text: LabelText, via: str | None = None) -> dict[int, list[int]]:
    """Returns the units of each feature's tokens in a table `logit`, or `deembedding` with this `via`, that occur in
    the text, the strongest first. Only tokens that raise something are returned."""
    if path is None:
        return {}
    rows = read_table(path, pc.field("sign") == 1)
    if via:
        rows = rows.filter(pc.field("via") == via)
    rows = rows.sort_by([("feature", "ascending"), ("rank", "ascending")])
    found: dict[int, list[int]] = {}
    features, tokens = rows.column("feature").to_pylist(), rows.column("token").to_pylist()
    for feature, token in zip(features, tokens, strict=True):
        unit = text.number.get(shown(token))
        if unit is not None and unit not in (mine := found.setdefault(feature, [])):
            mine.append(unit)
    return found


def _upstream(
    files: LayerTables, text: LabelText, known: Mapping[tuple[int, int], Description]
) -> dict[int, list[Description]]:
    """Returns descriptions that each feature of a layer may inherit: those of the features, and the tokens, that raise
    it most by the weights alone."""
    found: dict[int, list[Description]] = {}
    for feature, units in _units(files.deembedding, text, "direct").items():
        found[feature] = [
            Description((TokenAt(0, tuple(units[:n])),), upstream=True)
            for n in range(1, min(MAX_TOKENS, len(units)) + 1)
        ]
    if files.connection is None:
        return found
    rows = read_table(files.connection, (pc.field("rank") < SOURCES) & (pc.field("weight") > 0))
    columns = ("feature", "via", "source_layer", "source_feature")
    for feature, via, source_layer, source in zip(
        *(rows.column(name).to_pylist() for name in columns), strict=True
    ):
        description = known.get((source_layer, source))
        if description is not None and description.conditions:
            inherited = (
                Description(description.conditions, upstream=True)
                if via == "direct"
                else near_of(description)
            )
            if inherited:
                found.setdefault(feature, []).append(inherited)
    return found
