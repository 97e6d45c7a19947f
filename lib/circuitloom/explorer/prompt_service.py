"""Long work of one reader at a time: it says how far it is, and what it gave is kept for a while. Prompts tried out:
what fires, what a target is made of, what becomes of the next token when features change."""

import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import first_line
from .asking import Row
from .circuit_view import CircuitRows

if TYPE_CHECKING:
    from ..attribution.linearized_model import LinearizedModel
    from ..attribution.tracer import Tracer


KEPT = 16
"""Finished jobs whose results are kept, the latest."""
Say = Callable[[str], None]
"""Takes a line that says what is being done."""


@dataclass
class BackgroundJob:
    """Work that was asked for."""

    key: Hashable
    said: str = "waiting"
    """What is being done."""
    done: bool = False
    result: Any = None
    error: str | None = None
    """What went wrong, in one line."""
    finished: threading.Event = field(default_factory=threading.Event)


class JobQueue:
    """One job at a time, in the order in which they were asked for; asking again gives the same job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[Hashable, BackgroundJob] = OrderedDict()
        # models are watched and changed through hooks: one pass at a time
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explorer")

    def start(self, key: Hashable, work: Callable[[Say], Any], again: bool = True) -> BackgroundJob:
        """The job called `key`: the one that is there, else a new one that does `work`.

        A failed one is tried once more with `again`; those who ask how far it is leave that out.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is None or (again and job.error is not None):
                job = self._jobs[key] = BackgroundJob(key)
                self._pool.submit(self._run, job, work)
            self._jobs.move_to_end(key)
            finished = [each for each, other in self._jobs.items() if other.done]
            for old in finished[: max(0, len(finished) - KEPT)]:
                del self._jobs[old]
            return job

    def _run(self, job: BackgroundJob, work: Callable[[Say], Any]) -> None:
        def say(text: str) -> None:
            job.said = text

        try:
            job.result = work(say)
        except Exception as error:
            # whatever it is, the page says it, and the next job runs; what nobody expects goes to the terminal too
            if not isinstance(error, ValueError):
                traceback.print_exception(error)
            job.error = first_line(error)
        job.done = True
        job.finished.set()


NEXT = 10
"""Next tokens named, the likeliest."""


@dataclass(frozen=True)
class PromptFeatures:
    """A prompt as the transcoders see it."""

    run: str
    tokens: list[str]
    active: list[Row]
    """Features that fire: layer, position, feature, activation; the strongest first."""
    following: list[list[tuple[str, float]]]
    """Of each position, the likeliest next tokens with their probabilities."""


@dataclass(frozen=True)
class TracedPrompt:
    """A prompt traced to a target: rows as the catalogue's tables have them."""

    trace: Row
    circuit: CircuitRows
    paths: list[tuple[str, float]]


@dataclass(frozen=True)
class EditedPrediction:
    """Next tokens at one position, before and after features were changed, nothing else held."""

    position: int
    rows: list[tuple[str, float, float]]
    """Token, probability before, probability after."""
    kl: float
    """KL(before || after), nats."""


class PromptService:
    """The model and dictionaries of a study, opened when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = JobQueue()
        self._tracers: dict[str | None, Tracer] = {}
        self._local: tuple[tuple[str | None, str], LinearizedModel] | None = None

    def look(self, prompt: str, run: str | None, again: bool = True) -> BackgroundJob:
        """A job that gives a `Look`; a failed one is tried once more with `again`."""
        return self._jobs.start(("look", prompt, run), lambda say: self._look(prompt, run, say), again)

    def trace(self, prompt: str, run: str | None, target: str, again: bool = True) -> BackgroundJob:
        """A job that gives a `Traced`; a failed one is tried once more with `again`."""
        return self._jobs.start(
            ("trace", prompt, run, target), lambda say: self._trace(prompt, run, target, say), again
        )

    def change(self, prompt: str, run: str | None, position: int, change: dict[str, Any]) -> BackgroundJob:
        """A job that gives a `Changed`; `change` has the keys of the config's."""
        key = ("change", prompt, run, position, repr(sorted(change.items())))
        return self._jobs.start(key, lambda say: self._change(prompt, run, position, change, say))

    def _tracer(self, run: str | None, say: Say) -> "Tracer":
        if run not in self._tracers:
            say("opening the language model and the transcoders")
            from ..attribution.tracer import open_tracer

            self._tracers[run] = open_tracer(self.folder, run)
        return self._tracers[run]

    def _model(self, prompt: str, run: str | None, say: Say) -> "tuple[Tracer, LinearizedModel]":
        import torch

        tracer = self._tracer(run, say)
        if self._local is None or self._local[0] != (run, prompt):
            say("running the prompt")
            with torch.inference_mode():
                self._local = ((run, prompt), tracer.local_model(prompt))
        return tracer, self._local[1]

    def _look(self, prompt: str, run: str | None, say: Say) -> PromptFeatures:
        tracer, model = self._model(prompt, run, say)
        features = model.features
        columns = (features.layer, features.position, features.feature, features.activation)
        names = ("layer", "position", "feature", "activation")
        rows: list[Row] = [
            dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)
        ]
        likeliest = model.frozen.probabilities.topk(min(NEXT, model.frozen.probabilities.shape[1]))
        following = [
            [(_string(tracer, token), chance) for token, chance in zip(tokens, chances, strict=True)]
            for tokens, chances in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ]
        tokens = [tracer.strings[i] for i in model.frozen.token.tolist()]
        return PromptFeatures(tracer.run, tokens, sorted(rows, key=lambda row: -row["activation"]), following)

    def _trace(self, prompt: str, run: str | None, target: str, say: Say) -> TracedPrompt:
        from pydantic import ValidationError

        from ..attribution.trace_tables import TraceRows
        from ..attribution.tree import node_label
        from ..config.circuits import Circuits, Prompt
        from ..config.messages import one_line

        try:
            asked = Prompt(text=prompt, target=target)
        except ValidationError as error:
            raise ValueError(one_line(Prompt, error, "")) from None
        tracer = self._tracer(run, say)
        trace = tracer.trace(asked, Circuits(), say)
        say("naming what was found")
        rows = TraceRows(trace, "tried", tracer.strings)
        ((row,), nodes, edges) = (rows.tables()[name][1] for name in ("trace", "node", "edge"))
        circuit = live_circuit(nodes, edges)
        labels = {row["node"]: node_label(row) for row in nodes}
        steps: dict[int, list[tuple[str, float]]] = {}
        for step in rows.paths():
            steps.setdefault(step["path"], []).append((labels[step["node"]], step["effect"]))
        paths = [(" > ".join(name for name, _ in reversed(path)), path[-1][1]) for path in steps.values()]
        return TracedPrompt(row, circuit, sorted(paths, key=lambda path: -abs(path[1])))

    def _change(
        self, prompt: str, run: str | None, position: int, change: dict[str, Any], say: Say
    ) -> EditedPrediction:
        from pydantic import ValidationError

        from ..ablation.feature_edits import make_edits, predict
        from ..attribution.targets import find_position
        from ..config.circuits import Change
        from ..config.messages import one_line

        try:
            wanted = Change(**change)
        except ValidationError as error:
            raise ValueError(one_line(Change, error, "")) from None
        tracer, model = self._model(prompt, run, say)
        place = find_position(position, model)
        say("changing the features")
        before = model.frozen.probabilities[place]
        after = predict(tracer.language_model, model, make_edits(model, wanted))[place]
        n = min(NEXT, len(before))
        chosen = {*before.topk(n).indices.tolist(), *after.topk(n).indices.tolist()}
        rows = [(_string(tracer, token), float(before[token]), float(after[token])) for token in chosen]
        kl = float((before * (before.clamp_min(1e-30) / after.clamp_min(1e-30)).log()).sum())
        return EditedPrediction(place, sorted(rows, key=lambda row: -max(row[1:])), kl)


def live_circuit(nodes: list[Row], edges: list[Row]) -> CircuitRows:
    """Rows of the tables `node` and `edge` as the catalogue's macros give them."""
    from ..attribution.tree import node_label

    known: Row = dict.fromkeys(
        ("run", "layer", "feature", "head", "position", "token", "activation", "value", "influence", "probability",
         "remainder")
    )  # fmt: skip
    kept = [{**known, **row} for row in nodes if row["in_graph"]]
    kept.sort(key=lambda row: (row["influence"] is None, -(row["influence"] or 0.0), row["node"]))
    total = sum(row["influence"] or 0.0 for row in kept) or 1.0
    reached = 0.0
    for row in kept:
        reached += row["influence"] or 0.0
        row |= {"label": node_label(row), "cumulative": reached / total}
    labels = {row["node"]: row["label"] for row in kept}
    named = [
        {
            **{name: edge[name] for name in ("effect", "effect_frozen", "effect_free")},
            "source": labels[edge["source"]],
            "target": labels[edge["target"]],
            "source_node": edge["source"],
            "target_node": edge["target"],
        }
        for edge in edges
    ]
    return CircuitRows(kept, sorted(named, key=lambda edge: -abs(edge["effect"])))


def _string(tracer: "Tracer", token: int) -> str:
    """A token as text; ids beyond the tokenizer's are numbered."""
    return tracer.strings[token] if token < len(tracer.strings) else f"#{token}"
