"""Collects the contents of the report: answers to named queries, and plots of these answers."""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..attribution.drawing import GraphDrawing, graph_figure
from ..catalog.client import Answer, CatalogClient, Row
from ..core.feature_labels import FeatureLabel
from ..evaluation.pareto import pareto_figure
from .graph import EDGES, GraphLayout, lay_out, readable_share
from .plots import (
    draw_concepts,
    draw_densities,
    draw_effects,
    draw_faithfulness,
    draw_pretraining,
    draw_training,
    lines_of,
    spread_evenly,
)

PANELS = 4
"""Maximum number of layers in the plots of training and densities."""
PARETO_PANELS = 8
"""Maximum number of layers in the Pareto plot. One more panel shows all layers replaced at once."""
TEMPLATES = 3
"""Maximum number of templates of a behaviour whose common circuits are drawn."""
EFFECTS = 2000
"""Maximum number of edges in the plot of predicted and measured effects."""
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclass(frozen=True)
class Picture:
    """A plot as SVG, and the answer that the plot shows."""

    svg: str
    answer: Answer


@dataclass(frozen=True)
class TraceSection:
    """The part of the report about one traced prompt."""

    trace: Row
    """Row of the query `traces`."""
    prompt: Answer
    graph: GraphLayout
    share: float
    """Share of the influence that the graph shows at first."""
    nodes: Answer
    edges: Answer
    labels: Answer | None
    """Labelled features of the graph. None if no feature has a label."""
    features: tuple[Answer, Answer]
    """Answers about the features of the graph: logit effects, and examples."""
    effects: Picture | None
    paths: Answer
    interventions: Answer


@dataclass(frozen=True)
class CommonSection:
    """What the attribution graphs of a behaviour's prompts have in common."""

    svg: str
    """Picture of the common nodes and edges of the first templates."""
    nodes: Answer
    edges: Answer
    shares: Answer
    """What the common circuit recovers alone, and what remains without it."""


@dataclass(frozen=True)
class Sections:
    """Contents of the report that come from the catalogue."""

    glance: Answer
    cases: Answer
    compared: Answer
    corpus: Answer
    notices: Answer
    runs: Answer
    language_model: Answer
    pretraining: Picture | None
    layers: tuple[int, ...]
    """All layers whose dictionaries are evaluated."""
    shown: tuple[int, ...]
    """Layers in the plots of training and densities."""
    pareto: Picture | None
    metric_mean: Answer
    metrics: Answer
    training: Picture | None
    densities: Picture | None
    activation_norm: Answer
    outliers: Answer
    features: Answer
    """The best labelled features of the first traced run, or of the first run."""
    concepts: Picture | None
    concept_mean: Answer
    traces: Answer
    traced: tuple[TraceSection, ...]
    behaviours: Mapping[str, Picture]
    common: Mapping[str, CommonSection]
    """By name of the behaviour. Behaviours without aggregated graphs are left out."""
    components: Answer
    claims: Mapping[str, Answer]
    """Claims of each case study, by name."""
    case_labels: Mapping[str, Answer]
    """Labels of the features that a case study names, by name of the case study. Case studies without any are left
    out."""
    blind: Answer


@dataclass(frozen=True)
class AnswerLog:
    """Runs named queries and stores all answers. The report shows the rows and the SQL of each answer."""

    client: CatalogClient
    answers: list[Answer] = field(default_factory=list)

    def ask(self, query: str, key: str = "", /, **parameters: Any) -> Answer:
        """Run a named query. Store and return the answer.

        If the report runs a query several times, `key` (a trace, case study or behaviour) distinguishes the answers.
        """
        answer = self.client.ask(query, **parameters)
        if key:
            answer = replace(answer, name=f"{query}:{key}")
        assert answer.name not in {each.name for each in self.answers}
        self.answers.append(answer)
        return answer


def collect(
    catalogue: AnswerLog, step_tokens: int, named: Mapping[str, tuple[str, Sequence[str]]]
) -> Sections:
    """Run all queries and draw all plots of the report.

    `step_tokens` is the number of tokens per pretraining step, or 0 without pretraining. `named` maps the name of a
    case study to its run and to the features that its result names. Raises ValueError if the catalogue cannot be read.
    """
    runs = catalogue.ask("runs")
    lines = lines_of(runs.rows)
    layers = [row["layer"] for row in catalogue.ask("layers").rows if row["layer"] >= 0]
    shown = spread_evenly(layers, PANELS)
    figures = catalogue.ask("language_model")
    traces = catalogue.ask("traces")
    cases = catalogue.ask("cases")
    behaviours, components = _behaviours(catalogue)
    own = next((row["run"] for row in (*traces.rows, *runs.rows)), "")
    return Sections(
        glance=catalogue.ask("glance"),
        cases=cases,
        compared=catalogue.ask("compared"),
        corpus=catalogue.ask("corpus"),
        notices=catalogue.ask("notices"),
        runs=runs,
        language_model=figures,
        pretraining=_picture(
            catalogue.ask("pretraining", step_tokens=step_tokens or 1),
            draw_pretraining,
            {row["figure"]: row["value"] for row in figures.rows},
        ),
        layers=tuple(layers),
        shown=tuple(shown),
        pareto=_picture(
            catalogue.ask("pareto", layers=[*spread_evenly(layers, PARETO_PANELS), -1]), pareto_figure
        ),
        metric_mean=catalogue.ask("metric_mean"),
        metrics=catalogue.ask("metrics"),
        training=_picture(catalogue.ask("history", layers=shown), draw_training, lines),
        densities=_picture(catalogue.ask("density", layers=shown), draw_densities, lines),
        activation_norm=catalogue.ask("activation_norm"),
        outliers=catalogue.ask("outliers"),
        features=catalogue.ask("labelled_features", run=own),
        concepts=_picture(catalogue.ask("concept"), draw_concepts),
        concept_mean=catalogue.ask("concept_mean"),
        traces=traces,
        traced=tuple(_traced(catalogue, row) for row in traces.rows),
        behaviours=behaviours,
        common=_common(catalogue, behaviours),
        components=components,
        claims={
            row["case_study"]: catalogue.ask("claims_of_case", row["case_study"], case=row["case_study"])
            for row in cases.rows
        },
        case_labels=_case_labels(catalogue, named),
        blind=catalogue.ask("blind_mean"),
    )


def _case_labels(catalogue: AnswerLog, named: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, Answer]:
    """Returns the labels of the features that each case study names. Answers without rows are left out."""
    found = {}
    for case, (run, features) in named.items():
        if features and catalogue.client.ask("case_labels", run=run, features=features).rows:
            found[case] = catalogue.ask("case_labels", case, run=run, features=features)
    return found


def _picture(answer: Answer, draw: Callable[..., Figure], *arguments: Any) -> Picture | None:
    """Returns a plot of an answer, or None if the answer has no rows."""
    if not answer.rows:
        return None
    return Picture(inline_svg(draw(answer.rows, *arguments), answer.name, answer.description), answer)


def _traced(catalogue: AnswerLog, trace: Row) -> TraceSection:
    name, run = trace["trace"], trace["run"]

    def ask(query: str, **parameters: Any) -> Answer:
        return catalogue.ask(query, name, trace=name, **parameters)

    prompt = ask("trace")
    nodes, edges = ask("graph_nodes"), ask("graph_edges", edges=EDGES)
    return TraceSection(
        trace=trace,
        prompt=prompt,
        graph=lay_out(nodes.rows, edges.rows, prompt.first["tokens"] or []),
        share=readable_share(nodes.rows),
        nodes=nodes,
        edges=edges,
        labels=ask("graph_labels", run=run) if any(row["feature_label"] for row in nodes.rows) else None,
        features=(ask("graph_tokens", run=run), ask("graph_examples", run=run)),
        effects=_picture(ask("effects", edges=EFFECTS), draw_effects),
        paths=ask("paths"),
        interventions=ask("interventions"),
    )


def _behaviours(catalogue: AnswerLog) -> tuple[dict[str, Picture], Answer]:
    """Returns one faithfulness plot per behaviour, and the answer to the query `components`."""
    pictures = {}
    for row in catalogue.ask("behaviours").rows:
        answer = catalogue.ask("faithfulness", row["behaviour"], behaviour=row["behaviour"])
        picture = _picture(answer, draw_faithfulness)
        assert picture is not None
        pictures[row["behaviour"]] = picture
    return pictures, catalogue.ask("components")


def _common(catalogue: AnswerLog, behaviours: Iterable[str]) -> dict[str, CommonSection]:
    """Returns the common circuit of each behaviour. Behaviours without aggregated graphs are left out."""
    found = {}
    for name in behaviours:
        if not catalogue.client.ask("common_nodes", behaviour=name).rows:
            continue
        nodes, edges, shares = (
            catalogue.ask(query, name, behaviour=name)
            for query in ("common_nodes", "common_edges", "common_shares")
        )
        layers = 1 + max((row["layer"] for row in nodes.rows if row["layer"] is not None), default=0)
        labels: dict[str, dict[tuple[int, int], FeatureLabel]] = {}
        for row in nodes.rows:
            if label := FeatureLabel.of(row):
                labels.setdefault(row["run"], {})[row["layer"], row["feature"]] = label
        numbers = sorted({row["template"] for row in nodes.rows})[:TEMPLATES]
        drawings = [
            GraphDrawing.common(
                [row for row in nodes.rows if row["template"] == number],
                [row for row in edges.rows if row["template"] == number],
                layers,
                labels,
            )
            for number in numbers
        ]
        svg = inline_svg(graph_figure(drawings), nodes.name, nodes.description)
        found[name] = CommonSection(svg, nodes, edges, shares)
    return found


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Returns `figure` as an SVG element with selectable text.

    Ids get the prefix `name` to be unique in the page. `label` is the text for screen readers.
    """
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # the browser draws the text, so a glyph that is missing in matplotlib's font does no harm
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = _prefix_ids(text.getvalue(), re.sub(r"\W", "-", name))
    # without a height, the plot keeps its aspect ratio on a narrow page
    width, view = (re.search(rf'{key}="[^"]*"', svg) for key in ("width", "viewBox"))
    assert width and view
    head = f'<svg {_NAMESPACES} {width[0]} {view[0]} role="img" aria-label="{escape(label)}">'
    return re.sub(r"<svg [^>]*>", lambda _: head, svg, count=1)


def _prefix_ids(svg: str, name: str) -> str:
    """Returns the <svg> element of `svg`. Referenced ids get the prefix `name`. Other ids are removed."""
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
