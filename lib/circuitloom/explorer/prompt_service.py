"""Runs prompts for the explorer in background jobs, one at a time.

A job computes the active features of a prompt, an attribution graph, the result of a feature edit, or a text that is
generated while features are edited.
"""

import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attribution.node_names import node_name
from ..catalog.client import Row
from ..core.errors import first_line
from ..core.feature_labels import LabelsByFeature, read_feature_labels
from ..core.layout import Layout
from .circuit_view import CircuitRows

if TYPE_CHECKING:
    from torch import Tensor

    from ..ablation.generation import TextGenerator
    from ..attribution.linearized_model import LinearizedModel
    from ..attribution.tracer import Tracer

MAX_FINISHED_JOBS = 16
"""Maximum number of finished jobs in memory. The least recently requested jobs are dropped first."""
TOP_TOKENS = 10
"""Number of next tokens shown per position, most likely first."""
Progress = Callable[[str], None]
"""Function that a job calls with a one-line status text."""


@dataclass
class BackgroundJob:
    """A background job with its progress and its result."""

    key: Hashable
    status: str = "waiting"
    """One-line status text."""
    done: bool = False
    result: Any = None
    error: str | None = None
    """One-line error message if the job failed."""
    finished: threading.Event = field(default_factory=threading.Event)


class JobQueue:
    """Runs one job at a time, in the order of requests. A repeated request returns the existing job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[Hashable, BackgroundJob] = OrderedDict()
        # all jobs set hooks on the same model, so only one of them may run at a time
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explorer")

    def start(self, key: Hashable, work: Callable[[Progress], Any], retry: bool = True) -> BackgroundJob:
        """Returns the job with the key `key`. A new job runs `work`. If `retry` is true, a failed job runs again."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or (retry and job.error is not None):
                job = self._jobs[key] = BackgroundJob(key)
                self._pool.submit(self._run, job, work)
            self._jobs.move_to_end(key)
            finished = [each for each, other in self._jobs.items() if other.done]
            for old in finished[: max(0, len(finished) - MAX_FINISHED_JOBS)]:
                del self._jobs[old]
            return job

    def _run(self, job: BackgroundJob, work: Callable[[Progress], Any]) -> None:
        def progress(text: str) -> None:
            job.status = text

        try:
            job.result = work(progress)
        except Exception as error:
            # the page shows every error, and the next job still runs; unexpected errors are also printed
            if not isinstance(error, ValueError):
                traceback.print_exception(error)
            job.error = first_line(error)
        job.done = True
        job.finished.set()


@dataclass(frozen=True)
class PromptFeatures:
    """The active features of a prompt, and the most likely next tokens."""

    run: str
    tokens: list[str]
    active: list[Row]
    """Active features, by descending norm of what they write. Each row has the keys layer, position, feature and
    activation."""
    next_tokens: list[list[tuple[str, float]]]
    """(token, probability) of the most likely next tokens, per position."""
    notes: tuple[str, ...] = ()
    """Lines that say how the prompt was read, where a reader of its text may think otherwise."""


@dataclass(frozen=True)
class TracedPrompt:
    """The result of tracing a prompt to a target."""

    trace: Row
    """The trace as a row of the table `trace`."""
    circuit: CircuitRows
    paths: list[tuple[str, float]]
    """(names of the nodes, contribution to the target) of each path. The largest absolute contribution comes first."""


@dataclass(frozen=True)
class EditedPrediction:
    """Next-token probabilities at one position, before and after a feature edit. Nothing is frozen."""

    position: int
    rows: list[tuple[str, float, float]]
    """(token, probability before, probability after) of the tokens that are most likely before or after the edit."""
    kl: float
    """KL(before || after) in nats."""


@dataclass(frozen=True)
class GeneratedTexts:
    """A text that is generated while features are edited, and the untouched continuation."""

    prompt: str
    steered: list[str]
    """Names of the tokens of the steered continuation."""
    untouched: list[str]
    """Names of the tokens of the untouched continuation."""
    spacing: str
    """What stands between tokens in a text: a blank if they are words, else nothing."""
    kl: list[float]
    """KL(steered || untouched) in nats for each token of `steered`, as in `SteeredText`."""
    notes: list[str]
    """Lines that say how the prompt was read, and whether the model's cache was used."""


class PromptService:
    """Runs jobs on a study's language model and transcoders. Jobs load both at first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = JobQueue()
        self._tracers: dict[str | None, Tracer] = {}
        self._linearized: tuple[tuple[str | None, str], LinearizedModel] | None = None
        self._generators: dict[str | None, TextGenerator] = {}

    def features(self, prompt: str, run: str | None, retry: bool = True) -> BackgroundJob:
        """Returns the job that finds the active features of a prompt. The job's result is a `PromptFeatures`."""
        key = ("features", prompt, run)
        return self._jobs.start(key, lambda progress: self._features(prompt, run, progress), retry)

    def trace(self, prompt: str, run: str | None, target: str, retry: bool = True) -> BackgroundJob:
        """Returns the job that traces a prompt to a target. The job's result is a `TracedPrompt`."""
        key = ("trace", prompt, run, target)
        return self._jobs.start(key, lambda progress: self._trace(prompt, run, target, progress), retry)

    def edit(self, prompt: str, run: str | None, position: int, edit: dict[str, Any]) -> BackgroundJob:
        """Returns the job that runs a prompt with a feature edit. The job's result is an `EditedPrediction`.

        `edit` contains the fields of a `FeatureChange`.
        """
        key = ("edit", prompt, run, position, repr(sorted(edit.items())))
        return self._jobs.start(key, lambda progress: self._edit(prompt, run, position, edit, progress))

    def generate(self, prompt: str, run: str | None, edits: str, settings: dict[str, Any]) -> BackgroundJob:
        """Returns the job that generates text while features are edited. The job's result is a `GeneratedTexts`.

        `edits` is read by `parse_changes`. `settings` contains the fields of a `Sampling`, and `positions`.
        """
        key = ("generate", prompt, run, edits, repr(sorted(settings.items())))
        return self._jobs.start(key, lambda progress: self._generate(prompt, run, edits, settings, progress))

    def _tracer(self, run: str | None, progress: Progress) -> "Tracer":
        if run not in self._tracers:
            progress("opening the language model and the transcoders")
            from ..attribution.tracer import open_tracer

            self._tracers[run] = open_tracer(self.folder, run)
        return self._tracers[run]

    def _linearize(
        self, prompt: str, run: str | None, progress: Progress
    ) -> "tuple[Tracer, LinearizedModel]":
        import torch

        tracer = self._tracer(run, progress)
        if self._linearized is None or self._linearized[0] != (run, prompt):
            progress("running the prompt")
            with torch.inference_mode():
                self._linearized = ((run, prompt), tracer.linearize(prompt))
        return tracer, self._linearized[1]

    def _features(self, prompt: str, run: str | None, progress: Progress) -> PromptFeatures:
        import torch

        from ..corpus.token_names import token_name

        tracer, model = self._linearize(prompt, run, progress)
        features = model.features
        norm = torch.cat(
            [
                dictionary.row_norms(features.feature[features.layer == layer])
                for layer, dictionary in model.dictionaries.items()
            ]
        )
        written = (features.activation * norm).tolist()
        columns = (features.layer, features.position, features.feature, features.activation)
        names = ("layer", "position", "feature", "activation")
        rows: list[Row] = [
            dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)
        ]
        probabilities, likely = model.captured.most_likely(TOP_TOKENS)
        next_tokens = [
            [(token_name(tracer.strings, token), p) for token, p in zip(tokens, probabilities, strict=True)]
            for tokens, probabilities in zip(likely.tolist(), probabilities.tolist(), strict=True)
        ]
        tokens = [tracer.strings[i] for i in model.captured.token.tolist()]
        return PromptFeatures(
            tracer.run,
            tokens,
            # what a feature writes, since the decoder rows of imported dictionaries differ in length
            [rows[i] for i in sorted(range(len(rows)), key=lambda i: -written[i])],
            next_tokens,
            tracer.read(prompt).notes,
        )

    def _trace(self, prompt: str, run: str | None, target: str, progress: Progress) -> TracedPrompt:
        from pydantic import ValidationError

        from ..attribution.trace_tables import TraceRows
        from ..config.circuits import Circuits, Prompt
        from ..config.messages import one_line

        try:
            config = Prompt(text=prompt, target=target)
        except ValidationError as error:
            raise ValueError(one_line(Prompt, error, "")) from None
        tracer = self._tracer(run, progress)
        trace = tracer.trace(config, Circuits(attention_pairs=0), progress)
        progress("collecting nodes, edges and paths")
        rows = TraceRows(trace, "prompt", tracer.strings)
        ((row,), nodes, edges) = (rows.tables()[name][1] for name in ("trace", "node", "edge"))
        labels = {row["node"]: node_name(row) for row in nodes}
        steps: dict[int, list[tuple[str, float]]] = {}
        for step in rows.paths():
            steps.setdefault(step["path"], []).append((labels[step["node"]], step["effect"]))
        paths = [(" > ".join(name for name, _ in reversed(path)), path[-1][1]) for path in steps.values()]
        places = {(node["layer"], node["feature"]) for node in nodes if node["kind"] == "feature"}
        labels = read_feature_labels(Layout(self.folder), tracer.run, places)
        circuit = live_circuit(nodes, edges, row["tokens"], labels)
        return TracedPrompt(row, circuit, sorted(paths, key=lambda path: -abs(path[1])))

    def _edit(
        self, prompt: str, run: str | None, position: int, edit: dict[str, Any], progress: Progress
    ) -> EditedPrediction:
        from pydantic import ValidationError

        from ..ablation.feature_edits import edited_probabilities, make_edits
        from ..attribution.targets import resolve_position
        from ..config.circuits import FeatureChange
        from ..config.messages import one_line

        try:
            change = FeatureChange(**edit)
        except ValidationError as error:
            raise ValueError(one_line(FeatureChange, error, "")) from None
        tracer, model = self._linearize(prompt, run, progress)
        i = resolve_position(position, model)
        progress("editing the features")
        before = model.captured.probabilities(i)
        after = edited_probabilities(tracer.language_model, model, make_edits(model, change), i)
        return compare_predictions(i, before, after, tracer.strings)

    def _generate(
        self, prompt: str, run: str | None, edits: str, settings: dict[str, Any], progress: Progress
    ) -> GeneratedTexts:
        from ..ablation.generation import Sampling, make_generator
        from ..config.circuits import parse_changes

        changes, settings = parse_changes(edits), dict(settings)
        positions = settings.pop("positions")
        sampling = Sampling(**settings)
        if run not in self._generators:
            # the tracer's copy of the model
            tracer = self._tracer(run, progress)
            self._generators[run] = make_generator(
                self.folder, tracer.language_model, tracer.tokenizer, tracer.run
            )
        generator = self._generators[run]
        found = generator.generate(prompt, changes, sampling, positions, report=progress)
        steered, untouched = (found.names(text.token) for text in (found.steered, found.untouched))
        spacing = " " if generator.tokenizer.separate_words else ""
        return GeneratedTexts(found.prompt.text, steered, untouched, spacing, found.kl.tolist(), found.notes)


def compare_predictions(
    position: int, before: "Tensor", after: "Tensor", strings: list[str]
) -> EditedPrediction:
    """Compares two next-token distributions, [vocabulary]. `strings` maps each token id to its text."""
    from ..corpus.token_names import token_name

    n = min(TOP_TOKENS, len(before))
    tokens = {*before.topk(n).indices.tolist(), *after.topk(n).indices.tolist()}
    rows = [(token_name(strings, token), float(before[token]), float(after[token])) for token in tokens]
    kl = float((before * (before.clamp_min(1e-30) / after.clamp_min(1e-30)).log()).sum())
    return EditedPrediction(position, sorted(rows, key=lambda row: -max(row[1:])), kl)


def live_circuit(
    nodes: list[Row], edges: list[Row], tokens: list[str], features: LabelsByFeature | None = None
) -> CircuitRows:
    """Converts rows of tables `node` and `edge` to rows of the query `graph_nodes` and of the macro `circuit_edges`.

    `features` are the labels of features.
    """
    blank: Row = dict.fromkeys(
        ("run", "layer", "feature", "head", "position", "token", "activation", "value", "influence", "probability",
         "remainder")
    )  # fmt: skip
    kept = [{**blank, **row} for row in nodes if row["in_graph"]]
    kept.sort(key=lambda row: (row["influence"] is None, -(row["influence"] or 0.0), row["node"]))
    total = sum(row["influence"] or 0.0 for row in kept) or 1.0
    cumulative = 0.0
    for row in kept:
        cumulative += row["influence"] or 0.0
        row |= {"label": node_name(row), "cumulative": cumulative / total}
        if row["kind"] == "feature" and (known := (features or {}).get((row["layer"], row["feature"]))):
            row |= {"feature_label": known.text, "label_f1": known.f1}
    labels = {row["node"]: row["label"] for row in kept}
    labelled = [
        {
            **{name: edge[name] for name in ("effect", "effect_frozen", "effect_free")},
            "source": labels[edge["source"]],
            "target": labels[edge["target"]],
            "source_node": edge["source"],
            "target_node": edge["target"],
        }
        for edge in edges
    ]
    return CircuitRows(kept, sorted(labelled, key=lambda edge: -abs(edge["effect"])), tokens)
