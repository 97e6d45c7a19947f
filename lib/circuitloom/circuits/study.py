"""One prompt traced to its target: the graph, the paths, and what interventions make of both."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config.circuits import Change, Circuits, Prompt, parse_target
from ..corpus.tokenizer import Tokenizer
from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel
from .attribution import Targets, feature_targets, sources
from .changes import Outcome, apply_edits, make_edits
from .freezing import freeze
from .frozen import Weights, read_weights
from .graph import Graph, Roots, trace_graph
from .interventions import ablate_free, ablate_frozen, run_free
from .local_model import LocalModel
from .paths import Paths, Search, find_paths
from .step import target_reader
from .targets import Root, find_roots, read_prompt


@dataclass(frozen=True)
class Checks:
    """What was measured against what was predicted."""

    node: Int[Tensor, " ablated"]
    """Places, in the graph, of the nodes that were taken away, one at a time."""
    frozen: Float[Tensor, "ablated node"]
    """Each node of the graph before, minus after, everything else held; 0 for nodes that are no targets."""
    free: Float[Tensor, "ablated node"]
    """The same through the model itself, nothing held."""
    identity_error: float
    """Largest difference of a node's value on the model from the sum of its sources, over max(1, |value|)."""
    frozen_error: float
    """Largest difference of an edge's frozen effect from the predicted one, over max(1, size of the target)."""
    free_correlation: float | None
    """Of free effects with the predicted ones, of edges from features; None where it is not defined."""
    free_correlation_all: float | None
    """The same of all edges that were measured."""
    changes: list[tuple[str, Change, Outcome]]
    """Features changed together: why, which, and what became of the roots."""


@dataclass(frozen=True)
class Trace:
    """A prompt, traced."""

    prompt: Prompt
    run: str
    model: LocalModel
    roots: Roots
    root: list[Root]
    graph: Graph
    paths: Paths
    """From the first root."""
    checks: Checks
    seconds: float
    """Checks left out."""


class Tracer:
    """A model, a run's dictionaries and a tokenizer, ready to trace prompts."""

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: Tokenizer,
        run: str,
        dictionaries: Mapping[int, Dictionary],
        context: int,
    ) -> None:
        """`context` is the longest prompt, in tokens. Raises ValueError where circuits do not go through the model."""
        self.language_model, self.tokenizer = language_model, tokenizer
        self.run, self.dictionaries, self.context = run, dictionaries, context
        self.strings = tokenizer.strings()
        self.weights: Weights = read_weights(language_model)

    def local_model(self, text: str) -> LocalModel:
        """The replacement model of a prompt; ValueError where it cannot be read."""
        token = read_prompt(text, self.tokenizer, self.context)
        frozen = freeze(self.language_model, self.weights, token)
        return LocalModel(frozen, self.dictionaries, self.tokenizer.bos_id)

    @torch.inference_mode()
    def trace(self, prompt: Prompt, config: Circuits, say: Callable[[str], object] = lambda _: None) -> Trace:
        """Graph, paths and checks of one prompt; ValueError where its target is not there.

        `say` is told what is being done.
        """
        say("running the prompt")
        started = time.perf_counter()
        model = self.local_model(prompt.text)
        roots, root = find_roots(
            model, parse_target(prompt.target), self.strings, config.logits, config.probability, config.seed
        )
        say(f"tracing {len(model.features)} active features")
        graph = trace_graph(model, roots, config.node_share, config.edge_share)
        say("following the strongest paths")
        first = target_reader(model, roots.targets[:1])
        paths = find_paths(model, first, Search(config.length, config.width))
        seconds = time.perf_counter() - started
        say(f"checking {len(graph.node)} nodes by ablation")
        checks = self._check(model, roots, graph, prompt.changes)
        return Trace(prompt, self.run, model, roots, root, graph, paths, checks, seconds)

    def _check(self, model: LocalModel, roots: Roots, graph: Graph, wanted: Sequence[Change]) -> Checks:
        columns = sources(model)
        targets, place = graph_targets(model, roots, graph)
        node = torch.nonzero(graph.node < columns.constant)[:, 0]
        if model.frozen.positions is None:
            node = node[graph.node[node] < columns.embeddings.stop]
        frozen, free = (graph.value.new_zeros(len(node), len(graph.node)) for _ in range(2))
        frozen[:, place] = ablate_frozen(model, graph.node[node], targets)
        free[:, place] = ablate_free(self.language_model, model, graph.node[node], targets)
        actual = torch.cat(run_free(self.language_model, model, 1, {}, {}, targets), 1)[0]
        identity = (graph.value[place] - actual).abs() / actual.abs().clamp(min=1)
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
            changes=self._changes(model, roots, graph, wanted),
        )

    def _changes(
        self, model: LocalModel, roots: Roots, graph: Graph, wanted: Sequence[Change]
    ) -> list[tuple[str, Change, Outcome]]:
        """The circuit's features alone, the circuit's features gone, and what the prompt's config asks for."""
        active = graph.node[graph.node < sources(model).active]
        named = [feature_name(model, int(i)) for i in active]
        changes = [("the config's change", change) for change in wanted]
        if named:
            changes = [
                ("the circuit's features alone", Change(kind="keep", features=named)),
                ("without the circuit's features", Change(kind="ablate", features=named)),
                *changes,
            ]
        found = []
        for label, change in changes:
            other = None if change.source is None else self.local_model(change.source)
            edits = make_edits(model, change, other)
            found.append((label, change, apply_edits(self.language_model, model, edits, [roots.targets])))
        return found


def graph_targets(
    model: LocalModel, roots: Roots, graph: Graph
) -> tuple[list[Targets], Int[Tensor, " target"]]:
    """The features and roots of a graph as targets, layer by layer, and the place of each in the graph."""
    columns = sources(model)
    place = torch.nonzero(graph.node < columns.active)[:, 0]
    layer = model.features.layer[graph.node[place]]
    groups = [place[layer == each] for each in layer.unique()]
    targets = [feature_targets(model, graph.node[group]) for group in groups]
    groups.append(torch.nonzero(graph.node >= len(columns))[:, 0])
    return [*targets, roots.targets], torch.cat(groups)


def feature_name(model: LocalModel, active: int) -> str:
    """An active feature as LAYER/NUMBER@POSITION."""
    features = model.features
    return f"{features.layer[active]}/{features.feature[active]}@{features.position[active]}"


def _correlation(predicted: Float[Tensor, " edge"], measured: Float[Tensor, " edge"]) -> float | None:
    if len(predicted) < 2 or not predicted.std() or not measured.std():
        return None
    return float(torch.corrcoef(torch.stack([predicted, measured]).double())[0, 1])
