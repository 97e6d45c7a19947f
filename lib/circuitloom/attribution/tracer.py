"""Trace prompts: compute attribution graphs and greedy paths, and check the graphs by ablation.

`open_tracer` makes a tracer from the results of a study.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ablation.feature_edits import EditOutcome, apply_edits, make_edits
from ..ablation.interventions import ablate_free, ablate_frozen, run_free
from ..ablation.score_effects import ScoreDrops, SideAblation, ablate_sides
from ..ablation.subgraph import SubgraphSearchResult, find_subgraphs
from ..config.circuits import Circuits, FeatureChange, Prompt, parse_target
from ..config.model_shape import positions_of
from ..core.feature_labels import read_feature_labels
from ..core.formatting import escape_invisible, format_token
from ..core.layout import Layout
from ..core.tables import read_table
from ..corpus.prompt_text import PromptText, read_prompt
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..corpus.tokens import open_tokens
from ..dictionaries.cross_layer import LayerDictionary, load_run
from ..dictionaries.dictionary import CONFIG, is_transcoder
from ..language_model.model import LanguageModel, load_model
from ..language_model.query_key import (
    HeadEdge,
    PromptScores,
    QueryKeyWeights,
    capture_scores,
    read_query_key,
)
from .attention_scores import EdgeAttention, check_edge, head_edges, trace_attention
from .capture import ModelWeights, capture_pass, read_weights
from .direct_effects import AttributionTargets, feature_targets, source_columns
from .graph import AttributionGraph, Roots, trace_graph
from .linearized_model import LinearizedModel
from .paths import Paths, PathSearch, find_paths, target_reader
from .targets import RootNode, find_roots, read_answers, resolve_position

LONGER_PROMPTS = "shorten it, or set circuits.context (--context), up to the model's positions"
"""What to do about a prompt that is too long."""
MEASURED_SOURCES = 3
"""Number of sources per side of a head edge that are ablated."""
Supernodes = Sequence[Sequence[int]]
"""Indices of the features of each supernode, in `LinearizedModel.features`."""
TOKENS_PER_LABEL = 3
"""Largest number of tokens in the text of a feature without a label."""


@dataclass(frozen=True)
class Checks:
    """Measured interventions that check the effects of a graph's edges.

    In a frozen intervention, attention patterns, norm denominators, other errors and other features keep their values.
    In a free intervention, nothing is frozen.
    """

    node: Int[Tensor, " ablated"]
    """Index of each ablated node in the graph. Each node is ablated alone."""
    frozen: Float[Tensor, "ablated node"]
    """Drop of each node's value under a frozen ablation; 0 for nodes that are not targets."""
    free: Float[Tensor, "ablated node"]
    """Drop of each node's value under a free ablation; 0 for nodes that are not targets."""
    identity_error: float
    """Largest difference between a node's sum of effects and the node's value in the original model.

    Each difference is divided by max(1, |value in the original model|)."""
    frozen_error: float
    """Largest difference between an edge's effect and the effect measured by a frozen ablation.

    Each difference is divided by max(1, `AttributionGraph.size` of the edge's target)."""
    free_correlation: float | None
    """Correlation between edge effects and drops in free ablations; None if undefined.

    Only edges from features count."""
    free_correlation_all: float | None
    """Same as `free_correlation`, but over the edges from all ablated nodes."""
    edits: list[tuple[str, FeatureChange, EditOutcome]]
    """Each entry holds (reason, edit, values of the roots before and after the edit)."""


@dataclass(frozen=True)
class AttentionChecks:
    """Measured ablations of the strongest sources of head edges, on the query or the key alone."""

    ablations: list[SideAblation]
    drops: ScoreDrops
    """Drops of the scores, patterns and roots, in the order of `ablations`."""


@dataclass(frozen=True)
class AttentionTrace:
    """Why the heads of a circuit read what they read: attention scores as sums over pairs of sources."""

    edges: list[EdgeAttention]
    """Head edges of the greedy paths, by descending |contribution|."""
    checks: AttentionChecks
    seconds: float
    """Duration in seconds, without the checks."""


@dataclass(frozen=True)
class Trace:
    """All results for one prompt and target."""

    prompt: Prompt
    run: str
    model: LinearizedModel
    roots: Roots
    root_nodes: list[RootNode]
    """Descriptions of the roots, in the order of `roots`."""
    graph: AttributionGraph
    paths: Paths
    """Greedy paths from the first root."""
    checks: Checks
    seconds: float
    """Duration of the tracing in seconds, without the checks."""
    notes: tuple[str, ...] = ()
    """Lines that say how the prompt and the target were read, where a reader of their text may think otherwise."""
    attention: AttentionTrace | None = None
    """None if `Circuits.attention_pairs` is 0, or if the model's attention scores cannot be attributed."""
    subgraphs: SubgraphSearchResult | None = None
    """The smallest subgraphs. None if the config asks for no search."""


class Tracer:
    """Traces prompts through one model and the transcoders of one run.

    In the example, `tracer` is the result of `open_tracer`.

    >>> from circuitloom.config.circuits import Circuits, Prompt
    >>> trace = tracer.trace(Prompt(text="he was caught by the", target="logits"), Circuits())
    >>> trace.graph.node, trace.paths, trace.checks
    """

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: Tokenizer,
        run: str,
        dictionaries: Mapping[int, LayerDictionary],
        context: int,
    ) -> None:
        """`dictionaries` are the transcoders of the run by layer, or the `layers` of its cross-layer transcoder.
        `context` is the largest number of tokens in a prompt. Raises ValueError for unsupported architectures."""
        self.language_model, self.tokenizer = language_model, tokenizer
        self.run, self.dictionaries, self.context = run, dictionaries, context
        self.strings = tokenizer.strings()
        self.weights: ModelWeights = read_weights(language_model)

    @cached_property
    def query_key(self) -> list[QueryKeyWeights]:
        """Query and key weights of every layer. Raises ValueError if scores cannot be attributed."""
        return read_query_key(self.language_model)

    def scores(self, model: LinearizedModel) -> PromptScores:
        """Returns the attention scores of a prompt. Raises ValueError if they cannot be attributed."""
        return capture_scores(self.language_model, self.query_key, model.captured.token)

    def explain_attention(
        self,
        model: LinearizedModel,
        roots: Roots,
        edges: Mapping[HeadEdge, float],
        n: int,
        measured: int = MEASURED_SOURCES,
    ) -> AttentionTrace:
        """Attribute the scores of head edges to their `n` strongest pairs and sources, and ablate the `measured`
        strongest sources of each side.

        `edges` maps each edge to its contribution to the first root. Raises ValueError if a score cannot be attributed.
        """
        started = time.perf_counter()
        explained = trace_attention(model, self.scores(model), edges, n)
        seconds = time.perf_counter() - started
        last = source_columns(model).embeddings.stop
        if model.captured.position_embedding is not None:
            last = source_columns(model).position_embeddings.stop
        ablations = [
            SideAblation(each.edge, side, source)
            for each in explained
            for side, effects in (("query", each.query), ("key", each.key))
            for source in [source for source in effects.source.tolist() if source < last][:measured]
        ]
        drops = ablate_sides(self.language_model, model, ablations, [roots.targets])
        return AttentionTrace(explained, AttentionChecks(ablations, drops), seconds)

    def read(self, text: str, special: bool = False) -> PromptText:
        """Returns a prompt as token ids. `special` and the errors are those of `read_prompt`."""
        return read_prompt(text, self.tokenizer, self.context, special, LONGER_PROMPTS)

    def linearize(self, prompt: str | PromptText) -> LinearizedModel:
        """Returns the linearized model of a prompt.

        Raises ValueError if the prompt cannot be tokenized, is too short or is too long.
        """
        read = self.read(prompt) if isinstance(prompt, str) else prompt
        captured = capture_pass(self.language_model, self.weights, torch.from_numpy(read.token))
        return LinearizedModel(captured, self.dictionaries, self.tokenizer.separator_id)

    @torch.inference_mode()
    def trace(
        self,
        prompt: Prompt,
        config: Circuits,
        report: Callable[[str], object] = lambda _: None,
        groups: Callable[[LinearizedModel], Supernodes] = lambda _: (),
    ) -> Trace:
        """Trace one prompt: compute the attribution graph, the paths and the checks.

        `report` is called with progress messages. `groups` returns the supernodes of the search for the smallest
        subgraph; by default there are none. Raises ValueError if the prompt cannot be tokenized, is too short or
        is too long. Also raises ValueError if the target does not exist.
        """
        report("running the prompt")
        started = time.perf_counter()
        read, target = self.read(prompt.text, prompt.special_tokens), parse_target(prompt.target)
        model = self.linearize(read)
        resolve_position(target.position, model)
        answers = read_answers(target, read)
        roots, root_nodes = find_roots(
            model, target, self.strings, answers, config.logits, config.probability, config.seed
        )
        report(f"tracing {len(model.features)} active features")
        graph = trace_graph(model, roots, config.node_share, config.edge_share, config.row_share)
        report("searching for the strongest paths")
        first_root = target_reader(model, roots.targets[:1])
        paths = find_paths(model, first_root, PathSearch(config.length, config.width))
        seconds = time.perf_counter() - started
        report(f"checking {min(len(graph.node), config.ablated or len(graph.node))} nodes by ablation")
        checks = self._check(model, roots, graph, prompt, config.ablated)
        limits = _limit_notes(model, graph, checks)
        notes = [*read.notes, *(answer.note for answer in answers if answer.note), *limits]
        attention = subgraphs = None
        if config.attention_pairs:
            report("explaining why its heads read what they read")
            try:
                attention = self.explain_attention(model, roots, head_edges(paths), config.attention_pairs)
            # the circuit itself needs no scores
            except ValueError as error:
                notes.append(str(error))
        if config.subgraph is not None:
            report("searching for the smallest subgraph")
            subgraphs = find_subgraphs(self.language_model, model, roots, config.subgraph, groups(model))
        return Trace(
            prompt,
            self.run,
            model,
            roots,
            root_nodes,
            graph,
            paths,
            checks,
            seconds,
            tuple(notes),
            attention,
            subgraphs,
        )

    def read_head(self, head: str) -> tuple[int, int, int | None, int | None]:
        """Returns `parse_head` of a head of this model. Raises ValueError if `head` has another form, or if the model
        has no such layer or head."""
        layer, number, query, key = parse_head(head)
        anatomy = self.language_model.anatomy
        for name, value, count in (("layer", layer, anatomy.layers), ("head", number, anatomy.heads)):
            if value >= count:
                raise ValueError(f"{name} {value} does not exist; choose 0 to {count - 1}")
        return layer, number, query, key

    def attention_of(self, trace: Trace, head: str, n: int) -> AttentionTrace:
        """Returns why a head reads what it reads in a trace, with the `n` strongest pairs and sources of each edge.

        `head` is LAYER.HEAD@QUERY,KEY. Without positions, the edges are the circuit's edges of the head. If it has
        none, the edge is the key that the head reads most from the last position. Raises ValueError if `head` has
        another form, or if the score cannot be attributed.
        """
        layer, number, query, key = self.read_head(head)
        edges = {
            edge: contribution
            for edge, contribution in head_edges(trace.paths).items()
            if (edge.layer, edge.head) == (layer, number)
        }
        if query is not None and key is not None:
            edge = HeadEdge(
                layer, number, resolve_position(query, trace.model), resolve_position(key, trace.model)
            )
            edges = {edge: edges.get(edge, 0.0)}
        elif not edges:
            last = len(trace.model.captured) - 1
            check_edge(trace.model, self.scores(trace.model), HeadEdge(layer, number, last, last))
            key = int(trace.model.captured.layers[layer].pattern[number, last].argmax())
            edges = {HeadEdge(layer, number, last, key): 0.0}
        return self.explain_attention(trace.model, trace.roots, edges, n)

    def _check(
        self,
        model: LinearizedModel,
        roots: Roots,
        graph: AttributionGraph,
        prompt: Prompt,
        most: int | None = None,
    ) -> Checks:
        """Ablate each source in the graph alone, or the `most` most influential ones. The constant is not ablated. Then
        apply the prompt's changes."""
        columns = source_columns(model)
        targets, target_node = graph_targets(model, roots, graph)
        node = ablated_nodes(model, graph)
        if most is not None and len(node) > most:
            node = node[graph.influence[node].topk(most).indices].sort().values
        frozen, free = (graph.value.new_zeros(len(node), len(graph.node)) for _ in range(2))
        frozen[:, target_node] = ablate_frozen(model, graph.node[node], targets)
        free[:, target_node] = ablate_free(self.language_model, model, graph.node[node], targets)
        actual = torch.cat(run_free(self.language_model, model, 1, {}, targets), 1)[0]
        identity = (graph.value[target_node] - actual).abs() / actual.abs().clamp(min=1)
        row = torch.full_like(graph.node, -1)
        row[node] = torch.arange(len(node), device=node.device)
        edge = row[graph.source] >= 0
        source, target, effect = row[graph.source[edge]], graph.target[edge], graph.effect[edge]
        from_feature = graph.node[graph.source[edge]] < columns.active
        error = (frozen[source, target] - effect).abs() / graph.size[target].clamp(min=1)
        return Checks(
            node=node,
            frozen=frozen,
            free=free,
            identity_error=float(identity.max()),
            frozen_error=float(error.max()) if len(error) else 0.0,
            free_correlation=_correlation(effect[from_feature], free[source, target][from_feature]),
            free_correlation_all=_correlation(effect, free[source, target]),
            edits=self._apply_edits(model, roots, graph, prompt),
        )

    def _apply_edits(
        self, model: LinearizedModel, roots: Roots, graph: AttributionGraph, prompt: Prompt
    ) -> list[tuple[str, FeatureChange, EditOutcome]]:
        """Returns (reason, edit, outcome) of each edit.

        The first edit keeps only the graph's features. The second edit ablates the graph's features. If the graph has
        no features, these two edits are skipped. The prompt's changes follow.
        """
        active = graph.node[graph.node < source_columns(model).active]
        names = [feature_name(model, int(i)) for i in active]
        reasons = [("the config's change", edit) for edit in prompt.changes]
        if names:
            reasons = [
                ("the circuit's features alone", FeatureChange(kind="keep", features=names)),
                ("without the circuit's features", FeatureChange(kind="ablate", features=names)),
                *reasons,
            ]
        outcomes = []
        for reason, edit in reasons:
            source = None if edit.source is None else self.read(edit.source, prompt.special_tokens)
            other = None if source is None else self.linearize(source)
            made = make_edits(model, edit, other)
            outcomes.append((reason, edit, apply_edits(self.language_model, model, made, [roots.targets])))
        return outcomes


def graph_targets(
    model: LinearizedModel, roots: Roots, graph: AttributionGraph
) -> tuple[list[AttributionTargets], Int[Tensor, " target"]]:
    """Returns targets for the features and roots of a graph, and the node index of each target.

    The list has one item per layer of features, followed by one item for the roots. The node indices of all items are
    concatenated.
    """
    columns = source_columns(model)
    index = torch.nonzero(graph.node < columns.active)[:, 0]
    layer = model.features.layer[graph.node[index]]
    groups = [index[layer == each] for each in layer.unique()]
    targets = [feature_targets(model, graph.node[group]) for group in groups]
    groups.append(torch.nonzero(graph.node >= len(columns))[:, 0])
    return [*targets, roots.targets], torch.cat(groups)


def ablated_nodes(model: LinearizedModel, graph: AttributionGraph) -> Int[Tensor, " node"]:
    """Returns the indices of the graph's nodes that can be ablated: all but the constant, position embeddings that the
    model does not have, and roots."""
    columns = source_columns(model)
    has_positions = model.captured.position_embedding is not None
    stop = columns.constant if has_positions else columns.embeddings.stop
    return (graph.node < stop).nonzero()[:, 0]


def _limit_notes(model: LinearizedModel, graph: AttributionGraph, checks: Checks) -> Iterator[str]:
    """Yields lines that say what was left out of the trace."""
    coverage = graph.coverage
    if coverage.unfollowed:
        yield (
            f"the graph is partial: rows of {coverage.rows} of {len(model.features)} active features were computed, "
            f"and {coverage.unfollowed:.2%} of the influence is not followed (circuits.rows)"
        )
    total = len(ablated_nodes(model, graph))
    if len(checks.node) < total:
        yield (
            f"{len(checks.node)} of {total} nodes were ablated, the most influential ones; edges from the others are "
            "not checked (circuits.ablated)"
        )


def feature_name(model: LinearizedModel, active: int) -> str:
    """Returns the name LAYER/FEATURE@POSITION of the feature with index `active` in `model.features`."""
    features = model.features
    return f"{features.layer[active]}/{features.feature[active]}@{features.position[active]}"


def parse_head(text: str) -> tuple[int, int, int | None, int | None]:
    """Returns (layer, head, query, key) of LAYER.HEAD@QUERY,KEY. Positions are None if they are left out; negative
    ones count from the end. Raises ValueError for another form."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:@(-?\d+),(-?\d+))?", text.strip())
    if not found:
        raise ValueError(
            f"{text!r} is no head; write LAYER.HEAD@QUERY,KEY or LAYER.HEAD, such as 1.0@9,3 or 1.0"
        )
    layer, head, query, key = (None if part is None else int(part) for part in found.groups())
    assert layer is not None and head is not None
    return layer, head, query, key


def _correlation(predicted: Float[Tensor, " edge"], measured: Float[Tensor, " edge"]) -> float | None:
    if len(predicted) < 2 or not predicted.std() or not measured.std():
        return None
    return float(torch.corrcoef(torch.stack([predicted, measured]).double())[0, 1])


def open_tracer(
    folder: Path | str, run: str | None = None, dtype: str = "float32", context: int | None = None
) -> Tracer:
    """Open a tracer for the results of a study.

    By default, the run is `default_run`. `context` is the largest number of tokens in a prompt, by default that of the
    study's corpus. Raises ValueError if a part of the results is missing, if `run` is not one of `transcoder_runs`, or
    if the model has fewer positions than `context`.

    >>> tracer = open_tracer("results/quickstart", run="tc-topk16-1024")
    """
    folder = Path(folder)
    layout = Layout(folder)
    require_results(layout)
    runs = transcoder_runs(folder)
    if not runs:
        raise ValueError(f"{layout.dictionaries}: no trained run of transcoders; train one")
    run = run or default_run(folder)
    if run not in runs:
        raise ValueError(f"{run} is not a run of transcoders of {folder}; choose from {', '.join(runs)}")
    model = load_model(layout.model, dtype)
    check_context(model, context)
    found = load_run(folder, run, model.device, mapped=True)
    context = context or open_tokens(layout.tokens("validation")).context
    tokenizer = load_tokenizer(str(layout.tokenizer.resolve()))
    return Tracer(model, tokenizer, run, found, context)


def require_results(layout: Layout) -> None:
    """Raise ValueError if the study has no model, tokenizer or dictionaries."""
    for part, stage in (
        (layout.model, "language_model"),
        (layout.tokenizer, "corpus"),
        (layout.dictionaries, "dictionaries"),
    ):
        if not part.is_dir():
            raise ValueError(f"{part} is missing; run `snakemake --cores all {stage}` for this study first")


def default_run(folder: Path) -> str | None:
    """Returns the run that is used if none is named: `most_traced_run`, or if no prompt was traced the first of
    `transcoder_runs`. Returns None if there are no transcoders."""
    return most_traced_run(folder) or next(iter(transcoder_runs(folder)), None)


def check_context(model: LanguageModel, context: int | None) -> None:
    """Raises ValueError if the model has fewer positions than `context`. Learned positions end there; rotary ones were
    not trained beyond."""
    config = getattr(model.module, "config", None)
    positions = None if config is None else positions_of(config.to_dict())
    if context is not None and positions is not None and context > positions:
        raise ValueError(f"a context of {context} exceeds the model's {positions} positions; lower it")


def transcoder_runs(folder: Path) -> list[str]:
    """Returns the names of the study's trained runs of transcoders and cross-layer transcoders.

    Names in the evaluation table `run` come first, in the order of the table. Other names follow in alphabetical order.
    """
    found = []
    for config in sorted(Layout(folder).dictionaries.glob(f"*/layer*/{CONFIG}")):
        run = config.parts[-3]
        sites = json.loads(config.read_text())
        writes = [output["site"] for output in sites["outputs"]]
        if run not in found and all(is_transcoder(sites["site_in"], site) for site in writes):
            found.append(run)
    table = Layout(folder).evaluation_table("run")
    order = read_table(table).column("run").to_pylist() if table.is_file() else []
    return sorted(found, key=lambda run: (order.index(run) if run in order else len(order), run))


def label_groups(folder: Path, run: str, model: LinearizedModel) -> Supernodes:
    """Returns supernodes by label: active features at one position whose best labels are equal. Features without a
    label are in none."""
    features = model.features
    places = list(zip(features.layer.tolist(), features.feature.tolist(), strict=True))
    labels = read_feature_labels(Layout(folder), run, set(places))
    groups: dict[tuple[int, str], list[int]] = {}
    for index, (place, position) in enumerate(zip(places, features.position.tolist(), strict=True)):
        if place in labels:
            groups.setdefault((position, labels[place].text), []).append(index)
    return list(groups.values())


def most_traced_run(folder: Path) -> str | None:
    """Returns the run with which most prompts of the study were traced. Returns None if no prompt was traced."""
    tables = [read_table(file) for file in sorted(Layout(folder).circuits.glob("*/trace.parquet"))]
    runs = Counter(run for table in tables for run in table.column("run").to_pylist())
    return max(runs, key=lambda run: runs[run], default=None)


def feature_labels(folder: Path, run: str, features: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Returns a text for each (layer, feature): its label with the F1, or without one the most frequent tokens in its
    top examples.

    Features without label and examples are left out.
    """
    places = set(features)
    texts = {place: label.scored for place, label in read_feature_labels(Layout(folder), run, places).items()}
    by_layer: dict[int, list[int]] = {}
    for layer, feature in places - set(texts):
        by_layer.setdefault(layer, []).append(feature)
    for layer, numbers in by_layer.items():
        file = Layout(folder).feature_table(run, layer, "example")
        if not file.is_file():
            continue
        rows = read_table(file, pc.field("feature").isin(numbers) & (pc.field("band") == 0))
        tokens: dict[int, Counter[str]] = {}
        for row in rows.select(["feature", "tokens", "position", "window_start"]).to_pylist():
            token = row["tokens"][row["position"] - row["window_start"]]
            name = escape_invisible(token.strip(" ")) or format_token(token)
            tokens.setdefault(row["feature"], Counter())[name] += 1
        for feature, counts in tokens.items():
            texts[layer, feature] = "fires on " + ", ".join(
                token for token, _ in counts.most_common(TOKENS_PER_LABEL)
            )
    return texts
