"""Convert a traced prompt to rows of the tables `trace`, `node`, `edge`, `path`, `intervention`, `attention_score`,
`subgraph` and `subgraph_node`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.tables import (
    ATTENTION_SCORE,
    EDGE,
    INTERVENTION,
    NODE,
    PATH,
    SUBGRAPH,
    SUBGRAPH_NODE,
    TRACE,
    Table,
)
from .direct_effects import SourceColumns, source_columns
from .node_names import node_name
from .paths import FEATURE, HEAD, KINDS, Paths, SourceDecomposition
from .tracer import SideAblation, Trace, feature_name

Row = dict[str, Any]


class TraceRows:
    """Rows of the tables of one trace. Nodes of the graph are numbered first, then nodes that are only on paths."""

    def __init__(self, trace: Trace, name: str, strings: list[str]) -> None:
        """`name` is the name of the trace. `strings` are the vocabulary's tokens as text."""
        self.trace, self.name, self.strings = trace, name, strings
        self.tokens = [strings[i] for i in trace.model.captured.token.tolist()]
        self.columns = source_columns(trace.model)
        self.graph_nodes = [self._graph_node(index) for index in range(len(trace.graph.node))]
        self.first_root = len(self.graph_nodes) - len(trace.root_nodes)
        # roots differ from each other in their number alone: two tokens can have the same name
        self.numbers = {self._key(row): i for i, row in enumerate(self.graph_nodes[: self.first_root])}
        self.path_nodes = self._path_nodes(trace.paths)

    def tables(self) -> dict[str, tuple[Table, list[Row]]]:
        """Returns (table, rows) of each table, keyed by name."""
        return {
            table.name: (table, [{"trace": self.name, **row} for row in rows])
            for table, rows in (
                (TRACE, [self._trace()]),
                (NODE, self.nodes()),
                (EDGE, self.edges()),
                (PATH, list(self.paths())),
                (INTERVENTION, list(self.interventions())),
                (ATTENTION_SCORE, list(self.attention_scores())),
                (SUBGRAPH, self.subgraphs()),
                (SUBGRAPH_NODE, list(self.subgraph_nodes())),
            )
        }

    def nodes(self) -> list[Row]:
        """Returns the rows of the table `node`, sorted by node number."""
        return [{"node": i, **row} for i, row in enumerate([*self.graph_nodes, *self.path_nodes])]

    def edges(self) -> list[Row]:
        """Returns the rows of the table `edge`."""
        graph, checks = self.trace.graph, self.trace.checks
        row = torch.full_like(graph.node, -1)
        row[checks.node] = torch.arange(len(checks.node), device=row.device)
        ablated = row[graph.source]
        # the drops along edges alone, because lists of all drops would take much more memory
        measured = ablated >= 0
        frozen, free = (
            iter(drops[ablated[measured], graph.target[measured]].tolist())
            for drops in (checks.frozen, checks.free)
        )
        ends = (graph.source.tolist(), graph.target.tolist(), graph.effect.tolist(), measured.tolist())
        return [
            {
                "source": source,
                "target": target,
                "effect": effect,
                "effect_frozen": next(frozen) if known else None,
                "effect_free": next(free) if known else None,
            }
            for source, target, effect, known in zip(*ends, strict=True)
        ]

    def paths(self) -> Iterator[Row]:
        """Yields the rows of the table `path`. The path that consists of the root alone is left out."""
        paths = self.trace.paths
        for path in range(1, len(paths)):
            for step, prefix in enumerate(paths.prefixes(path)):
                yield {
                    "path": path - 1,
                    "step": step,
                    "node": self._path_node(paths, prefix),
                    "effect": float(paths.contribution[prefix]),
                    "n_steps": int(paths.length[path]),
                }

    def interventions(self) -> Iterator[Row]:
        """Yields the rows of the table `intervention`: ablations of single features, then edits of several features."""
        trace, columns = self.trace, self.columns
        graph, checks, model = trace.graph, trace.checks, trace.model
        roots = (graph.node >= len(columns)).nonzero()[:, 0].tolist()
        number = 0
        for i, index in enumerate(checks.node.tolist()):
            source = int(graph.node[index])
            if source >= columns.active:
                continue
            common = {"kind": "ablate", "label": f"node {index}", "features": [feature_name(model, source)]}
            for root in roots:
                before = float(graph.value[root])
                for frozen, effects in ((True, checks.frozen), (False, checks.free)):
                    after = before - float(effects[i, root])
                    own = {"root": root, "frozen": frozen, "before": before, "after": after}
                    yield {"intervention": number, **common, **own}
            number += 1
        for reason, edit, outcome in checks.edits:
            common = {
                "kind": edit.kind,
                "label": reason,
                "features": list(edit.features),
                "strength": edit.strength,
            }
            for i, root in enumerate(roots):
                for frozen, after in ((True, outcome.frozen), (False, outcome.free)):
                    own = {"root": root, "frozen": frozen, "before": float(outcome.before[i])}
                    yield {"intervention": number, **common, **own, "after": float(after[i])}
            number += 1

    def attention_scores(self) -> Iterator[Row]:
        """Yields the rows of the table `attention_score`. There are none if scores were not attributed."""
        attention = self.trace.attention
        if attention is None:
            return
        measured = {ablation: i for i, ablation in enumerate(attention.checks.ablations)}
        for each in attention.edges:
            edge = {
                **each.edge._asdict(),
                "score": each.score,
                "mean_score": each.mean_score,
                "mean_score_plain": each.plain_mean_score,
                "pattern": each.pattern,
                "contribution": each.contribution,
            }
            for rank, (query, key, effect) in enumerate(zip(*map(Tensor.tolist, each.pairs), strict=True)):
                sides = {**self._side("query", query), **self._side("key", key)}
                yield {**edge, "kind": "pair", "rank": rank, **sides, "effect": effect}
            for kind, effects in (("query", each.query), ("key", each.key)):
                for rank, (source, effect, relative, plain) in enumerate(
                    zip(*map(Tensor.tolist, effects), strict=True)
                ):
                    row = {**edge, "kind": kind, "rank": rank, **self._side(kind, source), "effect": effect}
                    row |= {"relative_effect": relative, "relative_effect_plain": plain}
                    ablation = SideAblation(each.edge, kind, source)
                    if ablation in measured:
                        drops, i = attention.checks.drops, measured[ablation]
                        row |= {
                            "effect_frozen": float(drops.frozen[i]),
                            "effect_free": float(drops.free[i]),
                            "pattern_free": float(drops.pattern[i]),
                            "root_free": float(drops.targets[i, 0]),
                        }
                    yield row

    def source_name(self, source: int) -> str:
        """Returns the name of a source, as `node_name` does. `source` is a column of `source_columns(model)`."""
        row = source_row(self.trace, source)
        return node_name({**row, "token": self.tokens[row["position"]]} if "position" in row else row)

    def _side(self, side: str, source: int) -> Row:
        row = source_row(self.trace, source)
        own = {f"{side}_{name}": row.get(name) for name in ("kind", "layer", "feature", "position")}
        return {f"{side}_source": self.source_name(source), **own}

    def subgraphs(self) -> list[Row]:
        """Returns the rows of the table `subgraph`, one per method."""
        result = self.trace.subgraphs
        if result is None:
            return []
        common = {
            "share": result.config.share,
            "errors": result.config.errors,
            "untouched": result.untouched,
            "none_kept": result.none,
            "n_candidates": result.n_units,
        }
        return [
            {
                "method": each.method,
                **common,
                "n_units": len(each.unit),
                "n_features": len(each.active),
                "kept": _defined(each.kept),
                "kept_frozen": _defined(each.kept_frozen),
                "minimal": each.minimal,
                "replacement_score": each.scores.replacement,
                "completeness_score": each.scores.completeness,
                "seconds": each.seconds,
            }
            for each in result.subgraphs
        ]

    def subgraph_nodes(self) -> Iterator[Row]:
        """Yields the rows of the table `subgraph_node`."""
        result = self.trace.subgraphs
        for each in result.subgraphs if result is not None else ():
            unit = each.unit_of_active.tolist()
            for rank, active in enumerate(each.active.tolist()):
                own = source_row(self.trace, active)
                yield {
                    "method": each.method,
                    "rank": rank,
                    "unit": unit[rank],
                    "node": self.numbers.get(self._key(own)),
                    "token": self.tokens[own["position"]],
                    **{name: own[name] for name in ("layer", "feature", "position", "activation")},
                }

    def _trace(self) -> Row:
        trace, scores = self.trace, self.trace.graph.scores
        return {
            "run": trace.run,
            "prompt": trace.prompt.text,
            "tokens": self.tokens,
            "target": trace.prompt.target,
            "notes": list(trace.notes),
            "dtype": str(trace.graph.effect.dtype).removeprefix("torch."),
            "n_active": len(trace.model.features),
            "n_rows": trace.graph.coverage.rows,
            "unfollowed": trace.graph.coverage.unfollowed,
            "n_nodes": len(trace.graph.node),
            "n_edges": len(trace.graph.effect),
            "replacement_score": scores.replacement,
            "completeness_score": scores.completeness,
            "completeness_strict": scores.completeness_strict,
            "identity_error": trace.checks.identity_error,
            "frozen_error": trace.checks.frozen_error,
            "free_correlation": trace.checks.free_correlation,
            "free_correlation_all": trace.checks.free_correlation_all,
            "seconds": trace.seconds,
        }

    def _graph_node(self, index: int) -> Row:
        trace, graph = self.trace, self.trace.graph
        source = int(graph.node[index])
        common = {
            "in_graph": True,
            "is_root": source >= len(self.columns),
            "influence": float(graph.influence[index]),
        }
        if source >= len(self.columns):
            root = trace.root_nodes[source - len(self.columns)]
            given = {
                "kind": root.kind,
                "layer": root.layer,
                "feature": root.feature,
                "position": root.position,
                "run": trace.run if root.kind == "feature" else None,
                "token": root.name if root.kind != "feature" else self.tokens[root.position],
                "probability": root.weight,
                "influence": None,
            }
        else:
            given = source_row(trace, source)
            if given.get("position") is not None:
                given["token"] = self.tokens[given["position"]]
        has_sources = source < self.columns.active or source >= len(self.columns)
        if has_sources:
            given |= {"value": float(graph.value[index]), "remainder": float(graph.remainder[index])}
        return common | given

    def _path_nodes(self, paths: Paths) -> list[Row]:
        """Returns the rows of nodes that are only on paths. Also adds `on_paths` to the rows of all nodes on paths."""
        added: list[Row] = []
        for path in range(len(paths)):
            if int(paths.kind[path]) < 0:
                continue
            key = self._path_key(paths, path)
            if key not in self.numbers:
                self.numbers[key] = len(self.graph_nodes) + len(added)
                row: Row = dict(zip(("kind", "layer", "feature", "head", "position"), key, strict=True))
                active = int(paths.active[path])
                if active >= 0:
                    row |= source_row(self.trace, active)
                added.append({"in_graph": False, "is_root": False, "token": self.tokens[key[-1]], **row})
            number = self.numbers[key] - len(self.graph_nodes)
            row = added[number] if number >= 0 else self.graph_nodes[number]
            row["on_paths"] = row.get("on_paths", 0.0) + float(paths.contribution[path])
        return added

    def _key(self, row: Row) -> tuple:
        """Returns a key that identifies a source."""
        return tuple(row.get(name) for name in ("kind", "layer", "feature", "head", "position"))

    def _path_node(self, paths: Paths, path: int) -> int:
        """Returns the number of the last node of a path. All paths begin at the first root."""
        return self.first_root if int(paths.kind[path]) < 0 else self.numbers[self._path_key(paths, path)]

    def _path_key(self, paths: Paths, path: int) -> tuple:
        kind = int(paths.kind[path])
        layer, index, position = (int(getattr(paths, name)[path]) for name in ("layer", "index", "position"))
        name = KINDS[kind]
        return (
            name,
            layer if name in ("feature", "head") else None,
            index if name == "feature" else None,
            index if name == "head" else None,
            position,
        )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def source_row(trace: Trace, source: int) -> Row:
    """Returns the fields of a source: kind, run, layer, feature, position and activation.

    Fields that do not apply to the kind are left out. `source` is a column of `source_columns(model)`.
    """
    model = trace.model
    columns: SourceColumns = source_columns(model)
    length = len(model.captured)
    if source < columns.active:
        features = model.features
        return {
            "kind": "feature",
            "run": trace.run,
            "layer": int(features.layer[source]),
            "feature": int(features.feature[source]),
            "position": int(features.position[source]),
            "activation": float(features.activation[source]),
        }
    if source < columns.errors.stop:
        layer, position = divmod(source - columns.errors.start, length)
        return {"kind": "error", "run": trace.run, "layer": layer, "position": position}
    if source < columns.embeddings.stop:
        return {"kind": "embedding", "position": source - columns.embeddings.start}
    if source < columns.constant:
        return {"kind": "position", "position": source - columns.position_embeddings.start}
    return {"kind": "constant"}


def source_rows(sources: SourceDecomposition, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the direct sources of a reader as rows, sorted by descending |value|.

    The fields are source (a name), kind, layer, number (of a feature or head), position and value. A field that does
    not apply to a kind is None. The values sum to the value of the reader. `tokens` are the prompt's tokens as text.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "error", "layer": None, "number": None, "position": None, "value": sources.error},
        {"kind": "constant", "layer": None, "number": None, "position": None, "value": sources.constant},
    ]
    columns = (sources.kind, sources.layer, sources.index, sources.position, sources.value)
    for kind, layer, number, position, value in zip(*(c.tolist() for c in columns), strict=True):
        numbered = kind in (FEATURE, HEAD)
        rows.append(
            {
                "kind": KINDS[kind],
                "layer": layer if numbered else None,
                "number": number if numbered else None,
                "position": position,
                "value": value,
            }
        )
    named = [{"source": _source_name(row, tokens), **row} for row in rows]
    return sorted(named, key=lambda row: -abs(row["value"]))


def _source_name(row: Mapping[str, Any], tokens: Sequence[str]) -> str:
    if row["position"] is None:
        return row["kind"] if row["kind"] == "constant" else "errors"
    own = {"feature": row["number"], "head": row["number"], "token": tokens[row["position"]]}
    return node_name({**row, **own})
