"""One prompt traced to its target: the graph, the paths, and what interventions make of both. What tracing finds in
the results of a study: model, tokenizer, dictionaries, what features fire on."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..ablation.feature_edits import EditOutcome, apply_edits, make_edits
from ..ablation.interventions import ablate_free, ablate_frozen, run_free
from ..config.circuits import Change, Circuits, Prompt, parse_target
from ..core.tables import read_table
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..corpus.tokens import open_tokens
from ..dictionaries.dictionary import CONFIG, Dictionary, load_dictionary
from ..language_model.model import LanguageModel, load
from .capture import ModelWeights, capture_pass, read_weights
from .direct_effects import AttributionTargets, feature_targets, sources
from .graph import AttributionGraph, Roots, trace_graph
from .linearized_model import LinearizedModel
from .paths import Paths, PathSearch, find_paths, target_reader
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
    changes: list[tuple[str, Change, EditOutcome]]
    """Features changed together: why, which, and what became of the roots."""


@dataclass(frozen=True)
class Trace:
    """A prompt, traced."""

    prompt: Prompt
    run: str
    model: LinearizedModel
    roots: Roots
    root: list[Root]
    graph: AttributionGraph
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
        self.weights: ModelWeights = read_weights(language_model)

    def local_model(self, text: str) -> LinearizedModel:
        """The replacement model of a prompt; ValueError where it cannot be read."""
        token = read_prompt(text, self.tokenizer, self.context)
        frozen = capture_pass(self.language_model, self.weights, token)
        return LinearizedModel(frozen, self.dictionaries, self.tokenizer.bos_id)

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
        paths = find_paths(model, first, PathSearch(config.length, config.width))
        seconds = time.perf_counter() - started
        say(f"checking {len(graph.node)} nodes by ablation")
        checks = self._check(model, roots, graph, prompt.changes)
        return Trace(prompt, self.run, model, roots, root, graph, paths, checks, seconds)

    def _check(
        self, model: LinearizedModel, roots: Roots, graph: AttributionGraph, wanted: Sequence[Change]
    ) -> Checks:
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
        self, model: LinearizedModel, roots: Roots, graph: AttributionGraph, wanted: Sequence[Change]
    ) -> list[tuple[str, Change, EditOutcome]]:
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
    model: LinearizedModel, roots: Roots, graph: AttributionGraph
) -> tuple[list[AttributionTargets], Int[Tensor, " target"]]:
    """The features and roots of a graph as targets, layer by layer, and the place of each in the graph."""
    columns = sources(model)
    place = torch.nonzero(graph.node < columns.active)[:, 0]
    layer = model.features.layer[graph.node[place]]
    groups = [place[layer == each] for each in layer.unique()]
    targets = [feature_targets(model, graph.node[group]) for group in groups]
    groups.append(torch.nonzero(graph.node >= len(columns))[:, 0])
    return [*targets, roots.targets], torch.cat(groups)


def feature_name(model: LinearizedModel, active: int) -> str:
    """An active feature as LAYER/NUMBER@POSITION."""
    features = model.features
    return f"{features.layer[active]}/{features.feature[active]}@{features.position[active]}"


def _correlation(predicted: Float[Tensor, " edge"], measured: Float[Tensor, " edge"]) -> float | None:
    if len(predicted) < 2 or not predicted.std() or not measured.std():
        return None
    return float(torch.corrcoef(torch.stack([predicted, measured]).double())[0, 1])


WORDS = 3
"""Tokens named of those that a feature fires on most."""


def open_tracer(folder: Path, run: str | None = None, dtype: str = "float32") -> Tracer:
    """A tracer for a finished study's `run`; for None, the one that most of its prompts were traced through, else
    the first run of transcoders.

    Raises ValueError, with the remedy, where a part is missing.
    """
    for part, stage in (
        ("model", "language_model"),
        ("corpus/tokenizer", "corpus"),
        ("dictionaries", "dictionaries"),
    ):
        if not (folder / part).is_dir():
            raise ValueError(
                f"{folder / part} is missing; run `snakemake --cores all {stage}` for this study first"
            )
    runs = transcoder_runs(folder)
    if not runs:
        raise ValueError(f"{folder / 'dictionaries'}: no run of transcoders; train one")
    run = run or traced_run(folder) or runs[0]
    if run not in runs:
        raise ValueError(f"{run} is no run of transcoders of {folder}; choose from {', '.join(runs)}")
    model = load(folder / "model", dtype)
    layers = sorted((folder / "dictionaries" / run).glob("layer*"))
    found = [load_dictionary(layer, model.device) for layer in layers if (layer / CONFIG).is_file()]
    context = open_tokens(folder / "corpus" / "validation.zarr").context
    tokenizer = load_tokenizer(str((folder / "corpus" / "tokenizer").resolve()))
    return Tracer(model, tokenizer, run, {each.layer: each for each in found}, context)


def transcoder_runs(folder: Path) -> list[str]:
    """The trained runs of transcoders, those of the study first and in its order."""
    found = []
    for config in sorted(folder.glob(f"dictionaries/*/layer*/{CONFIG}")):
        run = config.parts[-3]
        if run not in found and json.loads(config.read_text())["site_in"] == "mlp_in":
            found.append(run)
    table = folder / "evaluation" / "run.parquet"
    order = read_table(table).column("run").to_pylist() if table.is_file() else []
    return sorted(found, key=lambda run: (order.index(run) if run in order else len(order), run))


def traced_run(folder: Path) -> str | None:
    """The run that most prompts of the study were traced through; None where there are none."""
    tables = [read_table(file) for file in sorted(folder.glob("circuits/*/trace.parquet"))]
    runs = Counter(run for table in tables for run in table.column("run").to_pylist())
    return max(runs, key=lambda run: runs[run], default=None)


def feature_words(folder: Path, run: str, features: Iterable[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Layer and number to the tokens that a feature fires on most, where its examples are tabulated."""
    words: dict[tuple[int, int], str] = {}
    wanted: dict[int, list[int]] = {}
    for layer, feature in features:
        wanted.setdefault(layer, []).append(feature)
    for layer, numbers in wanted.items():
        file = folder / "features" / run / f"layer{layer}" / "example.parquet"
        if not file.is_file():
            continue
        rows = read_table(file, pc.field("feature").isin(numbers) & (pc.field("band") == 0))
        tokens: dict[int, Counter[str]] = {}
        for row in rows.select(["feature", "tokens", "position", "window_start"]).to_pylist():
            token = row["tokens"][row["position"] - row["window_start"]]
            tokens.setdefault(row["feature"], Counter())[token.strip()] += 1
        for feature, counts in tokens.items():
            words[layer, feature] = "fires on " + ", ".join(token for token, _ in counts.most_common(WORDS))
    return words
