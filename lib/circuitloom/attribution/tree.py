"""Parts of circuits as rows to look at: what nodes are called, and what one step back consists of. A traced prompt
for the terminal: what the root is made of, its strongest paths as a tree, and the checks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from .direct_effects import direct_effects, sources
from .paths import EMBEDDING, FEATURE, HEAD, KINDS, Paths, SourceDecomposition
from .trace_tables import TraceRows
from .tracer import Trace


def node_label(row: Mapping[str, Any]) -> str:
    """A row of the table `node` in a few words, as the catalogue's macro `node_label` has it."""
    kind, token = row["kind"], row.get("token")
    place = f"'{token}'@{row.get('position')}"
    match kind:
        case "feature":
            return f"{row['layer']}/{row['feature']} {place}"
        case "head":
            return f"head {row['layer']}.{row['head']} from {place}"
        case "error":
            return f"error {row['layer']} {place}"
        case "constant":
            return "constant"
        case _:
            return f"{kind} {place}"


def step_rows(step: SourceDecomposition, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """All that a reader's value is the sum of, the largest first: source, kind, layer, number, position, value.

    `tokens` are the prompt's. What has no layer, number or position has None there.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "error", "layer": None, "number": None, "position": None, "value": step.error},
        {"kind": "constant", "layer": None, "number": None, "position": None, "value": step.constant},
    ]
    columns = (step.kind, step.layer, step.index, step.position, step.value)
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
    named = [{"source": _source(row, tokens), **row} for row in rows]
    return sorted(named, key=lambda row: -abs(row["value"]))


def _source(row: Mapping[str, Any], tokens: Sequence[str]) -> str:
    if row["position"] is None:
        return row["kind"] if row["kind"] == "constant" else "errors"
    own = {"feature": row["number"], "head": row["number"], "token": tokens[row["position"]]}
    return node_label({**row, **own})


BRANCHES = 5
"""Children shown of a node, the largest."""
SHOWN = 40
"""Paths shown in all, the largest."""

Words = Mapping[tuple[int, int], str]
"""Layer and number of a feature to what is known about it."""


def print_trace(trace: Trace, rows: TraceRows, words: Words, console: Console) -> None:
    """Print a trace to the terminal; `words` say what features fire on, where that is known."""
    tokens = " ".join(f"{escape(token)}{_place(i)}" for i, token in enumerate(rows.tokens))
    console.print(f"[bold]{trace.run}[/bold], {len(trace.model.features)} active features", highlight=False)
    console.print(tokens, highlight=False)
    if len(trace.root) > 1:
        shown = ", ".join(f"{escape(repr(root.label))} {root.weight:.2f}" for root in trace.root)
        console.print(f"next token: {shown}", highlight=False)
    console.print()
    console.print(_parts(trace), highlight=False)
    console.print()
    console.print(path_tree(trace, rows, words), highlight=False)
    console.print()
    for line in _summary(trace):
        console.print(line, highlight=False)


def _parts(trace: Trace) -> Table:
    """What each kind of source adds to the first root, directly."""
    model, columns = trace.model, sources(trace.model)
    row = direct_effects(model, trace.roots.targets[:1])[0].double()
    parts = {
        f"features of layer {layer}": row[: columns.active][model.features.layer == layer].sum()
        for layer in model.dictionaries
    }
    parts |= {
        "errors": row[columns.errors].sum(),
        "embeddings": row[columns.embeddings].sum(),
        "positions": row[columns.learned_positions].sum(),
        "constants": row[columns.constant],
    }
    table = Table("source, through any number of heads", "adds", box=None, header_style="dim")
    table.columns[1].justify = "right"
    for name, value in parts.items():
        if float(value):
            table.add_row(name, f"{float(value):+.3f}")
    table.add_row("[bold]sum[/bold]", f"[bold]{float(row.sum()):+.3f}[/bold]")
    return table


def path_tree(trace: Trace, rows: TraceRows, words: Words) -> Tree:
    """The strongest paths from the first root, children under what they act on."""
    paths, label = trace.paths, trace.root[0].label
    order = paths.contribution[1:].abs().argsort(descending=True)[:SHOWN] + 1
    shown = {step for path in order.tolist() for step in paths.steps(path)}
    tree = Tree(f"[bold]{escape(repr(label))}[/bold] {float(paths.contribution[0]):+.3f}")
    branches: dict[int, Any] = {0: tree}
    for path in sorted(
        shown - {0}, key=lambda path: (int(paths.length[path]), -abs(float(paths.contribution[path])))
    ):
        parent = int(paths.parent[path])
        siblings = branches.get(parent)
        if siblings is None or len(siblings.children) >= BRANCHES:
            continue
        branches[path] = siblings.add(_step(trace, rows, words, paths, path))
    return tree


def _step(trace: Trace, rows: TraceRows, words: Words, paths: Paths, path: int) -> str:
    kind, layer, index, position = (
        int(getattr(paths, name)[path]) for name in ("kind", "layer", "index", "position")
    )
    token = f"[cyan]{escape(repr(rows.tokens[position]))}[/cyan]{_place(position)}"
    value = float(paths.contribution[path])
    colour = "blue" if value > 0 else "red"
    if kind == FEATURE:
        activation = float(trace.model.features.activation[paths.active[path]])
        known = f" [dim]{escape(words[layer, index])}[/dim]" if (layer, index) in words else ""
        name = f"feature {layer}/{index} at {token}, {activation:.2f}{known}"
    elif kind == HEAD:
        name = f"head {layer}.{index} reads {token}"
    else:
        name = f"{'embedding' if kind == EMBEDDING else 'position'} of {token}"
    return f"[{colour}]{value:+.3f}[/{colour}] {name}"


def _place(position: int) -> str:
    """A position in small digits, which no token has."""
    return f"[dim]{str(position).translate(str.maketrans('0123456789', '₀₁₂₃₄₅₆₇₈₉'))}[/dim]"


def _summary(trace: Trace) -> list[str]:
    graph, checks = trace.graph, trace.checks
    scores = graph.scores
    correlation = "not defined" if checks.free_correlation is None else f"{checks.free_correlation:.3f}"
    lines = [
        f"graph: {len(graph.node)} nodes, {len(graph.effect)} edges; replacement {scores.replacement:.3f}, "
        f"completeness {scores.completeness:.3f} (strict {scores.completeness_strict:.3f})",
        f"checks: sums add up to {checks.identity_error:.1e}; frozen ablations are as predicted to "
        f"{checks.frozen_error:.1e}; free ones of features correlate with them by {correlation}",
    ]
    for label, change, outcome in checks.changes:
        before, frozen, free = (float(part[0]) for part in (outcome.before, outcome.frozen, outcome.free))
        lines.append(
            f"{label} ({change.kind} {len(change.features)}): {before:.3f} becomes {frozen:.3f} frozen, {free:.3f} free"
        )
    lines.append(f"traced in {trace.seconds:.2f} s")
    return lines


def strongest_features(paths: Paths) -> set[tuple[int, int]]:
    """Layer and number of the features on the paths, for whom words are worth looking up."""
    features = paths.kind == FEATURE
    pairs = torch.stack([paths.layer[features], paths.index[features]], 1)
    return {(int(layer), int(feature)) for layer, feature in pairs.unique(dim=0)}
