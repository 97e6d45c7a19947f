"""Print a traced prompt in the terminal: a table of sources, the strongest paths as a tree, scores and checks."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from ..core.formatting import format_token
from .attention_scores import EdgeAttention, SideEffects
from .direct_effects import direct_effects, source_columns
from .paths import EMBEDDING, FEATURE, HEAD, Paths
from .trace_tables import TraceRows, source_row
from .tracer import AttentionTrace, SideAblation, SubgraphSearchResult, Trace

MAX_CHILDREN = 5
"""Largest number of children shown per node."""
MAX_PATHS = 40
"""Largest number of paths shown. Prefixes of these paths are shown, too."""

FeatureLabels = Mapping[tuple[int, int], str]
"""Maps (layer, feature) to the feature's label."""


def print_trace(trace: Trace, rows: TraceRows, labels: FeatureLabels, console: Console) -> None:
    """Print a trace. Features without an entry in `labels` are shown without a label."""
    tokens = " ".join(f"{escape(format_token(token))}{_subscript(i)}" for i, token in enumerate(rows.tokens))
    console.print(f"[bold]{trace.run}[/bold], {len(trace.model.features)} active features", highlight=False)
    console.print(tokens, highlight=False)
    for note in trace.notes:
        console.print(escape(note), highlight=False)
    if len(trace.root_nodes) > 1:
        shown = ", ".join(f"{escape(repr(root.name))} {root.weight:.2f}" for root in trace.root_nodes)
        console.print(f"next token: {shown}", highlight=False)
    console.print()
    console.print(_source_table(trace), highlight=False)
    console.print()
    console.print(path_tree(trace, rows, labels), highlight=False)
    console.print()
    for line in _summary(trace):
        console.print(line, highlight=False)
    if trace.subgraphs is not None:
        console.print()
        for part in _subgraphs(rows, trace.subgraphs, labels):
            console.print(part, highlight=False)


def print_attention(
    attention: AttentionTrace, rows: TraceRows, labels: FeatureLabels, console: Console
) -> None:
    """Print why heads read what they read: for each head edge, its strongest pairs and sources."""
    for each in attention.edges:
        edge = each.edge
        query, key = (f"{escape(repr(rows.tokens[at]))}{_subscript(at)}" for at in (edge.query, edge.key))
        console.print()
        console.print(
            f"[bold]head {edge.layer}.{edge.head} at {query} reads {key}[/bold]: score {each.score:+.3f}, mean over "
            f"the keys {each.plain_mean_score:+.3f} (weighted by the pattern {each.mean_score:+.3f}); attention "
            f"{each.pattern:.3f}; {_passed(each)}",
            highlight=False,
        )
        pairs = Table("query's source", "key's source", "adds", box=None, header_style="dim")
        for query_source, key_source, effect in zip(*(column.tolist() for column in each.pairs), strict=True):
            names = (_source_text(rows, labels, source) for source in (query_source, key_source))
            pairs.add_row(*names, f"{effect:+.3f}")
        rest = each.score - float(each.pairs.effect.sum())
        pairs.add_row("all other pairs", "", f"{rest:+.3f}")
        console.print(pairs, highlight=False)
        for side, effects in (("query", each.query), ("key", each.key)):
            console.print(_side_table(attention, each, side, effects, rows, labels), highlight=False)
    console.print(
        "lost: what goes if the source is removed from this side alone; frozen: all else held, free: nothing held\n"
        f"explained in {attention.seconds:.2f} s",
        highlight=False,
    )


def _passed(each: EdgeAttention) -> str:
    if not each.contribution:
        return "no greedy path of the circuit goes through it"
    return f"passes {each.contribution:+.3f} to the target along the greedy paths"


def _side_table(
    attention: AttentionTrace,
    each: EdgeAttention,
    side: str,
    effects: SideEffects,
    rows: TraceRows,
    labels: FeatureLabels,
) -> Table:
    """Returns a table of the sources of one side of a head edge."""
    measured = {ablation: i for i, ablation in enumerate(attention.checks.ablations)}
    drops = attention.checks.drops
    table = Table(
        f"{side}'s source", "adds", "less the mean", "lost, frozen", "lost, free", "attention lost", "target lost",
        box=None, header_style="dim",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for source, effect, plain in zip(
        effects.source.tolist(), effects.effect.tolist(), effects.relative_plain.tolist(), strict=True
    ):
        i = measured.get(SideAblation(each.edge, side, source))
        found = ()
        if i is not None:
            found = (drops.frozen[i], drops.free[i], drops.pattern[i], drops.targets[i, 0])
        values = [f"{float(value):+.3f}" for value in (effect, plain, *found)]
        table.add_row(_source_text(rows, labels, source), *values)
    return table


def _source_text(rows: TraceRows, labels: FeatureLabels, source: int) -> str:
    label = None
    if source < len(rows.trace.model.features):
        row = source_row(rows.trace, source)
        label = labels.get((row["layer"], row["feature"]))
    return escape(rows.source_name(source)) + (f" [dim]{escape(label)}[/dim]" if label else "")


def _source_table(trace: Trace) -> Table:
    """Returns the direct effects on the first root: one sum per layer of features, one sum per other kind of source."""
    model, columns = trace.model, source_columns(trace.model)
    row = direct_effects(model, trace.roots.targets[:1])[0].double()
    sums = {
        f"features of layer {layer}": row[: columns.active][model.features.layer == layer].sum()
        for layer in model.dictionaries
    }
    sums |= {
        "errors": row[columns.errors].sum(),
        "embeddings": row[columns.embeddings].sum(),
        "positions": row[columns.position_embeddings].sum(),
        "constants": row[columns.constant],
    }
    table = Table("source, through any number of heads", "adds", box=None, header_style="dim")
    table.columns[1].justify = "right"
    for name, value in sums.items():
        if float(value):
            table.add_row(name, f"{float(value):+.3f}")
    table.add_row("[bold]sum[/bold]", f"[bold]{float(row.sum()):+.3f}[/bold]")
    return table


def path_tree(trace: Trace, rows: TraceRows, labels: FeatureLabels) -> Tree:
    """Returns the strongest paths from the first root as a tree. The children of a node are its sources."""
    paths = trace.paths
    order = paths.contribution[1:].abs().argsort(descending=True)[:MAX_PATHS] + 1
    shown = {prefix for path in order.tolist() for prefix in paths.prefixes(path)}
    tree = Tree(f"[bold]{escape(repr(trace.root_nodes[0].name))}[/bold] {float(paths.contribution[0]):+.3f}")
    branches: dict[int, Any] = {0: tree}
    for path in sorted(
        shown - {0}, key=lambda path: (int(paths.length[path]), -abs(float(paths.contribution[path])))
    ):
        parent = int(paths.parent[path])
        siblings = branches.get(parent)
        if siblings is None or len(siblings.children) >= MAX_CHILDREN:
            continue
        branches[path] = siblings.add(_node_text(trace, rows, labels, paths, path))
    return tree


def _node_text(trace: Trace, rows: TraceRows, labels: FeatureLabels, paths: Paths, path: int) -> str:
    kind, layer, index, position = (
        int(getattr(paths, name)[path]) for name in ("kind", "layer", "index", "position")
    )
    token = f"[cyan]{escape(repr(rows.tokens[position]))}[/cyan]{_subscript(position)}"
    value = float(paths.contribution[path])
    colour = "blue" if value > 0 else "red"
    if kind == FEATURE:
        activation = float(trace.model.features.activation[paths.active[path]])
        known = f" [dim]{escape(labels[layer, index])}[/dim]" if (layer, index) in labels else ""
        name = f"feature {layer}/{index} at {token}, {activation:.2f}{known}"
    elif kind == HEAD:
        name = f"head {layer}.{index} reads {token}"
    else:
        name = f"{'embedding' if kind == EMBEDDING else 'position'} of {token}"
    return f"[{colour}]{value:+.3f}[/{colour}] {name}"


def _subscript(position: int) -> str:
    """Returns the position in subscript digits."""
    return f"[dim]{str(position).translate(str.maketrans('0123456789', '₀₁₂₃₄₅₆₇₈₉'))}[/dim]"


def _summary(trace: Trace) -> list[str]:
    graph, checks = trace.graph, trace.checks
    scores = graph.scores
    correlation = "not defined" if checks.free_correlation is None else f"{checks.free_correlation:.3f}"
    lines = [
        f"graph: {len(graph.node)} nodes, {len(graph.effect)} edges; replacement {scores.replacement:.3f}, "
        f"completeness {scores.completeness:.3f} (strict {scores.completeness_strict:.3f})",
        f"checks: sums of sources agree with the model to {checks.identity_error:.1e}; frozen ablations agree "
        f"with edges within {checks.frozen_error:.1e}; correlation of free feature ablations with edges {correlation}",
    ]
    for reason, edit, outcome in checks.edits:
        before, frozen, free = (float(part[0]) for part in (outcome.before, outcome.frozen, outcome.free))
        lines.append(
            f"{reason} ({edit.kind} {len(edit.features)}): {before:.3f} becomes {frozen:.3f} frozen, {free:.3f} free"
        )
    lines.append(f"traced in {trace.seconds:.2f} s")
    return lines


def _subgraphs(rows: TraceRows, result: SubgraphSearchResult, labels: FeatureLabels) -> Iterator[Any]:
    """Yields the methods of the search for the smallest subgraph as a table, and the features of the smallest one."""
    change = f"{result.untouched:.3f} becomes {result.none:.3f} with all features ablated"
    title = f"smallest subgraphs that keep {result.config.share:g} of the target ({change}"
    yield f"{title}; errors: {result.config.errors}; nodes that can reach it: {result.n_units})"
    table = Table(
        "method", "nodes", "features", "kept", "frozen", "replacement", "completeness", "seconds",
        box=None, header_style="dim", padding=(0, 1, 0, 0),
    )  # fmt: skip
    for each in result.subgraphs:
        numbers = (each.kept, each.kept_frozen, each.scores.replacement, each.scores.completeness)
        table.add_row(
            each.method,
            str(len(each.unit)) if len(each.unit) else "none",
            str(len(each.active)),
            *(f"{number:.3f}" for number in numbers),
            f"{each.seconds:.2f}",
        )
    yield table
    best = result.smallest
    if best is None:
        return
    tree = Tree(f"the subgraph found by {best.method}, most important first")
    nodes: dict[int, list[str]] = {}
    for row in rows.subgraph_nodes():
        if row["method"] == best.method:
            nodes.setdefault(row["unit"], []).append(_subgraph_feature(row, labels))
    for members in list(nodes.values())[:MAX_PATHS]:
        branch = tree.add(members[0] if len(members) == 1 else "supernode")
        for member in members if len(members) > 1 else ():
            branch.add(member)
    if len(nodes) > MAX_PATHS:
        tree.add(f"... and {len(nodes) - MAX_PATHS} more")
    yield tree


def _subgraph_feature(row: Mapping[str, Any], labels: FeatureLabels) -> str:
    token = f"[cyan]{escape(repr(row['token']))}[/cyan]{_subscript(row['position'])}"
    label = labels.get((row["layer"], row["feature"]))
    known = "" if label is None else f" [dim]{escape(label)}[/dim]"
    return f"feature {row['layer']}/{row['feature']} at {token}, {row['activation']:.2f}{known}"


def subgraph_features(trace: Trace) -> set[tuple[int, int]]:
    """Returns (layer, feature) of each feature of the smallest subgraph."""
    best = None if trace.subgraphs is None else trace.subgraphs.smallest
    if best is None:
        return set()
    features = trace.model.features
    pairs = torch.stack([features.layer[best.active], features.feature[best.active]], 1)
    return {(int(layer), int(feature)) for layer, feature in pairs.unique(dim=0)}


def attention_features(attention: AttentionTrace, trace: Trace) -> set[tuple[int, int]]:
    """Returns (layer, feature) of each feature that is a source of an attention score."""
    columns = [
        column
        for each in attention.edges
        for column in (each.pairs.query_source, each.pairs.key_source, each.query.source, each.key.source)
    ]
    features = trace.model.features
    source = torch.cat([torch.empty(0, dtype=torch.int64), *(column.cpu() for column in columns)])
    active = source[source < len(features)].to(features.layer.device)
    pairs = torch.stack([features.layer[active], features.feature[active]], 1)
    return {(int(layer), int(feature)) for layer, feature in pairs.unique(dim=0)}


def path_features(paths: Paths) -> set[tuple[int, int]]:
    """Returns (layer, feature) of each feature on a path."""
    features = paths.kind == FEATURE
    pairs = torch.stack([paths.layer[features], paths.index[features]], 1)
    return {(int(layer), int(feature)) for layer, feature in pairs.unique(dim=0)}
