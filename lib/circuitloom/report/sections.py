"""What the report says, section by section: answers of the catalogue, and what is drawn from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..catalog.client import Answer, CatalogClient, Row
from ..evaluation.pareto import pareto_figure
from .graph import EDGES, GraphLayout, lay_out
from .plots import (  # fmt: skip
    draw_concepts,
    draw_densities,
    draw_effects,
    draw_faithfulness,
    draw_pretraining,
    draw_training,
    lines_of,
    spread,
)
from .svg import inline_svg

PANELS = 4
"""Layers that training and densities are shown of, at most."""
PARETO_PANELS = 8
"""Layers that the Pareto plot has panels of, at most; all layers at once has one more."""
EFFECTS = 2000
"""Edges in a plot of effects, at most."""


@dataclass(frozen=True)
class Picture:
    """A plot, and the answer that it was drawn from."""

    svg: str
    answer: Answer


@dataclass(frozen=True)
class TraceSection:
    """A prompt that was traced."""

    trace: Row
    asked: Answer
    graph: GraphLayout
    nodes: Answer
    edges: Answer
    of_features: tuple[Answer, Answer]
    """Tokens that features raise and lower, and their examples."""
    effects: Picture | None
    paths: Answer
    interventions: Answer


@dataclass(frozen=True)
class Sections:
    """Everything in the report that the catalogue answered."""

    glance: Answer
    cases: Answer
    corpus: Answer
    runs: Answer
    language_model: Answer
    pretraining: Picture | None
    layers: tuple[int, ...]
    """Layers that were scored."""
    shown: tuple[int, ...]
    """Those of them that training and densities are shown of."""
    pareto: Picture | None
    metric_mean: Answer
    metrics: Answer
    training: Picture | None
    densities: Picture | None
    concepts: Picture | None
    concept_mean: Answer
    traces: Answer
    traced: tuple[TraceSection, ...]
    behaviours: Mapping[str, Picture] = field(default_factory=dict)
    components: Answer | None = None
    claims: Mapping[str, Answer] = field(default_factory=dict)
    blind: Answer | None = None


@dataclass(frozen=True)
class AnswerLog:
    """Asks a study's catalogue, and keeps every answer for the rows and SQL that the report holds."""

    client: CatalogClient
    answers: list[Answer] = field(default_factory=list)

    def ask(self, query: str, key: str = "", /, **parameters: Any) -> Answer:
        """The answer to a named query; `key` (a trace, case study or behaviour) makes its name unique."""
        answer = self.client.ask(query, **parameters)
        if key:
            answer = replace(answer, name=f"{query}:{key}")
        assert answer.name not in {each.name for each in self.answers}
        self.answers.append(answer)
        return answer


def collect(catalogue: AnswerLog, step_tokens: int) -> Sections:
    """Ask for everything, and draw it; `step_tokens` are those of a step of pretraining, 0 where there was none.

    Raises ValueError where the catalogue cannot be read.
    """
    runs = catalogue.ask("runs")
    lines = lines_of(runs.rows)
    layers = [row["layer"] for row in catalogue.ask("layers").rows if row["layer"] >= 0]
    shown = spread(layers, PANELS)
    figures = catalogue.ask("language_model")
    traces = catalogue.ask("traces")
    cases = catalogue.ask("cases")
    behaviours, components = _behaviours(catalogue)
    return Sections(
        glance=catalogue.ask("glance"),
        cases=cases,
        corpus=catalogue.ask("corpus"),
        runs=runs,
        language_model=figures,
        pretraining=_pretraining(catalogue, figures, step_tokens),
        layers=tuple(layers),
        shown=tuple(shown),
        pareto=_pareto(catalogue, [*spread(layers, PARETO_PANELS), -1]),
        metric_mean=catalogue.ask("metric_mean"),
        metrics=catalogue.ask("metrics"),
        training=_picture(catalogue.ask("history", layers=shown), draw_training, lines),
        densities=_picture(catalogue.ask("density", layers=shown), draw_densities, lines),
        concepts=_picture(catalogue.ask("concept"), draw_concepts),
        concept_mean=catalogue.ask("concept_mean"),
        traces=traces,
        traced=tuple(_traced(catalogue, row) for row in traces.rows),
        behaviours=behaviours,
        components=components,
        claims={
            row["case_study"]: catalogue.ask("claims_of_case", row["case_study"], case=row["case_study"])
            for row in cases.rows
        },
        blind=catalogue.ask("blind_mean"),
    )


def _picture(answer: Answer, draw: Any, *given: Any) -> Picture | None:
    """`answer` as `draw` draws it; nothing where it has no rows."""
    if not answer.rows:
        return None
    return Picture(inline_svg(draw(answer.rows, *given), answer.name, answer.description), answer)


def _pretraining(catalogue: AnswerLog, figures: Answer, step_tokens: int) -> Picture | None:
    answer = catalogue.ask("pretraining", step_tokens=step_tokens or 1)
    return _picture(answer, draw_pretraining, {row["figure"]: row["value"] for row in figures.rows})


def _pareto(catalogue: AnswerLog, layers: list[int]) -> Picture | None:
    return _picture(catalogue.ask("pareto", layers=layers), pareto_figure)


def _traced(catalogue: AnswerLog, trace: Row) -> TraceSection:
    """All that is shown of one traced prompt."""
    name, run = trace["trace"], trace["run"]

    def ask(query: str, **values: Any) -> Answer:
        return catalogue.ask(query, name, trace=name, **values)

    asked = ask("trace")
    nodes, edges = ask("graph_nodes"), ask("graph_edges", edges=EDGES)
    return TraceSection(
        trace=trace,
        asked=asked,
        graph=lay_out(nodes.rows, edges.rows, asked.rows[0]["tokens"] or []),
        nodes=nodes,
        edges=edges,
        of_features=(ask("graph_tokens", run=run), ask("graph_examples", run=run)),
        effects=_picture(ask("effects", edges=EFFECTS), draw_effects),
        paths=ask("paths"),
        interventions=ask("interventions"),
    )


def _behaviours(catalogue: AnswerLog) -> tuple[dict[str, Picture], Answer]:
    """A plot a behaviour, and the components that each depends on most."""
    pictures = {}
    for row in catalogue.ask("behaviours").rows:
        answer = catalogue.ask("faithfulness", row["behaviour"], behaviour=row["behaviour"])
        picture = _picture(answer, draw_faithfulness)
        assert picture is not None
        pictures[row["behaviour"]] = picture
    return pictures, catalogue.ask("components")
