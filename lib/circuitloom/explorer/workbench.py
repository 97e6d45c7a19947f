"""Prompts tried out: what fires, what a target is made of, what becomes of the next token when features change."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .asking import Row
from .circuit_graph import Circuit
from .jobs import Job, Jobs, Say

if TYPE_CHECKING:
    from ..circuits.local_model import LocalModel
    from ..circuits.study import Tracer

NEXT = 10
"""Next tokens named, the likeliest."""


@dataclass(frozen=True)
class Look:
    """A prompt as the transcoders see it."""

    run: str
    tokens: list[str]
    active: list[Row]
    """Features that fire: layer, position, feature, activation; the strongest first."""
    following: list[list[tuple[str, float]]]
    """Of each position, the likeliest next tokens with their probabilities."""


@dataclass(frozen=True)
class Traced:
    """A prompt traced to a target: rows as the catalogue's tables have them."""

    study: Row
    circuit: Circuit
    paths: list[tuple[str, float]]


@dataclass(frozen=True)
class Changed:
    """Next tokens at one position, before and after features were changed, nothing else held."""

    position: int
    rows: list[tuple[str, float, float]]
    """Token, probability before, probability after."""
    kl: float
    """KL(before || after), nats."""


class Workbench:
    """The model and dictionaries of a profile, opened when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = Jobs()
        self._tracers: dict[str | None, Tracer] = {}
        self._local: tuple[tuple[str | None, str], LocalModel] | None = None

    def look(self, prompt: str, run: str | None, again: bool = True) -> Job:
        """A job that gives a `Look`; a failed one is tried once more with `again`."""
        return self._jobs.start(("look", prompt, run), lambda say: self._look(prompt, run, say), again)

    def trace(self, prompt: str, run: str | None, target: str, again: bool = True) -> Job:
        """A job that gives a `Traced`; a failed one is tried once more with `again`."""
        return self._jobs.start(
            ("trace", prompt, run, target), lambda say: self._trace(prompt, run, target, say), again
        )

    def change(self, prompt: str, run: str | None, position: int, change: dict[str, Any]) -> Job:
        """A job that gives a `Changed`; `change` has the keys of the config's."""
        key = ("change", prompt, run, position, repr(sorted(change.items())))
        return self._jobs.start(key, lambda say: self._change(prompt, run, position, change, say))

    def _tracer(self, run: str | None, say: Say) -> "Tracer":
        if run not in self._tracers:
            say("opening the language model and the transcoders")
            from ..circuits.profile import open_tracer

            self._tracers[run] = open_tracer(self.folder, run)
        return self._tracers[run]

    def _model(self, prompt: str, run: str | None, say: Say) -> "tuple[Tracer, LocalModel]":
        import torch

        tracer = self._tracer(run, say)
        if self._local is None or self._local[0] != (run, prompt):
            say("running the prompt")
            with torch.inference_mode():
                self._local = ((run, prompt), tracer.local_model(prompt))
        return tracer, self._local[1]

    def _look(self, prompt: str, run: str | None, say: Say) -> Look:
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
        return Look(tracer.run, tokens, sorted(rows, key=lambda row: -row["activation"]), following)

    def _trace(self, prompt: str, run: str | None, target: str, say: Say) -> Traced:
        from pydantic import ValidationError

        from ..circuits.naming import node_label
        from ..circuits.study_rows import StudyRows
        from ..config.circuits import Circuits, Prompt
        from ..config.messages import one_line

        try:
            asked = Prompt(text=prompt, target=target)
        except ValidationError as error:
            raise ValueError(one_line(Prompt, error, "")) from None
        tracer = self._tracer(run, say)
        trace = tracer.trace(asked, Circuits(), say)
        say("naming what was found")
        rows = StudyRows(trace, "tried", tracer.strings)
        ((study,), nodes, edges) = (rows.tables()[name][1] for name in ("study", "node", "edge"))
        circuit = live_circuit(nodes, edges)
        labels = {row["node"]: node_label(row) for row in nodes}
        steps: dict[int, list[tuple[str, float]]] = {}
        for step in rows.paths():
            steps.setdefault(step["path"], []).append((labels[step["node"]], step["effect"]))
        paths = [(" > ".join(name for name, _ in reversed(path)), path[-1][1]) for path in steps.values()]
        return Traced(study, circuit, sorted(paths, key=lambda path: -abs(path[1])))

    def _change(
        self, prompt: str, run: str | None, position: int, change: dict[str, Any], say: Say
    ) -> Changed:
        from pydantic import ValidationError

        from ..circuits.changes import make_edits, predict
        from ..circuits.targets import find_position
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
        return Changed(place, sorted(rows, key=lambda row: -max(row[1:])), kl)


def live_circuit(nodes: list[Row], edges: list[Row]) -> Circuit:
    """Rows of the tables `node` and `edge` as the catalogue's macros give them."""
    from ..circuits.naming import node_label

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
    return Circuit(kept, sorted(named, key=lambda edge: -abs(edge["effect"])))


def _string(tracer: "Tracer", token: int) -> str:
    """A token as text; ids beyond the tokenizer's are numbered."""
    return tracer.strings[token] if token < len(tracer.strings) else f"#{token}"
