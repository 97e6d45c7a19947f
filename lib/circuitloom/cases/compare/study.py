"""Comparison of dictionaries: which runs give the better circuits, on the same prompts and at a known cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ...attribution.capture import capture_pass, read_weights
from ...attribution.linearized_model import LinearizedModel
from ...attribution.targets import find_roots
from ...config.cases.compare import CompareCase, ComparedPrompt
from ...config.cases.planted import PlantedCase
from ...config.circuits import Circuits, parse_target
from ...config.evaluation import Evaluation
from ...core.layout import ALL_LAYERS
from ...core.progress import progress
from ...core.tables import read_table
from ...corpus.guilds import GuildQuestion, guild_concepts, questions
from ...corpus.prompt_text import PromptText, print_notes, read_prompt
from ...corpus.templates import fill_templates
from ...corpus.tokens import open_tokens
from ...evaluation.held_out import HeldOut, load_held_out
from ..case_report import CaseReport
from ..context import CaseContext
from ..planted.report import PlantedResults
from ..planted.study import measure_planted
from .full_graph import FullGraph, full_graph
from .measurements import FeatureSet, measure_effects, measure_patch, measure_step
from .report import CompareResults, PromptOutcome, RunOutcome, make_report


@dataclass(frozen=True)
class PlantedTruth:
    """The concepts of the generated corpus, and the features that match them."""

    held_out: HeldOut
    concepts: pa.Table
    """Table `concept`."""
    matched: pa.Table
    """Table `feature_concept` of all compared runs."""

    def features(self, run: str, concepts: Iterable[str], least: float) -> FeatureSet:
        """Returns the features of a run that predict one of `concepts` with an F1 of at least `least` on the choosing
        half. Raises ValueError if there is no such concept."""
        features: dict[int, set[int]] = {}
        for concept in concepts:
            own = self.matched.filter(pc.field("concept") == concept)
            if not len(own):
                known = ", ".join(sorted(set(self.matched["concept"].to_pylist())))
                raise ValueError(
                    f"through: {concept} is no concept of the held-out text; choose from {known}"
                )
            for row in own.filter(pc.field("run") == run).to_pylist():
                if row["f1_choosing"] >= least:
                    features.setdefault(row["layer"], set()).add(row["feature"])
        return features


def open_truth(tokens: str, concepts: str, matched: Iterable[str], config: Evaluation) -> PlantedTruth:
    """Open the held-out tokens, the table `concept` and the tables `feature_concept` of a study."""
    held_out = load_held_out(open_tokens(tokens), config)
    return PlantedTruth(held_out, read_table(concepts), pa.concat_tables(map(read_table, matched)))


def study_compare(
    name: str,
    context: CaseContext,
    metrics: pa.Table,
    planted: PlantedTruth | None,
    case: CompareCase,
    config: Circuits,
) -> CaseReport:
    """Returns the report of the case study `name`.

    `metrics` is the table `metric`. `planted` is needed if `case.concepts`. Raises ValueError if a prompt cannot be
    tokenized, or if a target token or a concept is unknown.
    """
    # 1. Scores of the runs, and of their features for planted concepts
    concepts = None if planted is None else _planted_results(context, planted, case)
    runs = [
        _run_outcome(context, group, run, metrics, concepts)
        for group, runs in case.groups.items()
        for run in runs
    ]
    # 2. Prompts, the same for all runs
    drawn = draw_prompts(case)
    read = [_read(each.text, each, context) for each in drawn]
    print_notes(name, [note for each in read for note in each.notes])
    # 3. Graphs and ablations of each prompt in each run. The runs share one pass of the model
    weights, outcomes = read_weights(context.model), []
    with progress(f"cases: {name}", len(drawn) * len(runs), "graphs") as bar:
        for number, (prompt, text) in enumerate(zip(drawn, read, strict=True)):
            captured = capture_pass(context.model, weights, torch.from_numpy(text.token))
            other = None
            if prompt.other is not None:
                read_other = _read(prompt.other, prompt, context)
                if len(read_other.token) != len(text.token):
                    raise ValueError(
                        f"{prompt.other!r} has {len(read_other.token)} tokens, and {prompt.text!r} has "
                        f"{len(text.token)}; choose one with as many"
                    )
                other = capture_pass(context.model, weights, torch.from_numpy(read_other.token))
            for run in runs:
                model = LinearizedModel(captured, context.runs[run.run], context.tokenizer.separator_id)
                graph = _graph(model, prompt, text, context, config)
                step = patch = None
                if prompt.through and planted is not None:
                    features = planted.features(run.run, prompt.through, case.matching)
                    step = measure_step(context.model, graph, features)
                    if other is not None:
                        both = planted.features(
                            run.run, [*prompt.through, *prompt.other_through], case.matching
                        )
                        there = LinearizedModel(other, context.runs[run.run], context.tokenizer.separator_id)
                        patch = measure_patch(
                            context.model, graph, _graph(there, prompt, text, context, config), both
                        )
                outcomes.append(
                    PromptOutcome(
                        run.group,
                        run.run,
                        number,
                        prompt,
                        len(model.features),
                        graph.scores,
                        measure_effects(context.model, graph, case.ablated),
                        step,
                        patch,
                    )
                )
                bar.update(1)
    return make_report(CompareResults(name, case, runs, outcomes, concepts))


def draw_prompts(case: CompareCase) -> list[ComparedPrompt]:
    """Returns about `case.count` prompts with distinct texts, drawn from the templates and from each kind of questions
    in turn."""
    per_source = -(-case.count // (len(case.prompts) + len(case.questions)))
    sources = [_filled(each, case, per_source) for each in case.prompts]
    sources += [
        [question_prompt(each) for each in questions(case.seed, kind == "held_out")[:per_source]]
        for kind in case.questions
    ]
    drawn: dict[str, ComparedPrompt] = {}
    for turn in range(per_source):
        for prompts in sources:
            if turn < len(prompts):
                drawn.setdefault(prompts[turn].text, prompts[turn])
    return list(drawn.values())


def _filled(template: ComparedPrompt, case: CompareCase, count: int) -> list[ComparedPrompt]:
    keys = [key for key in ("text", "target", "other") if getattr(template, key) is not None]
    filled = fill_templates([getattr(template, key) for key in keys], case.slots, count, case.seed)
    return [template.model_copy(update=dict(zip(keys, values, strict=True))) for values in filled]


def question_prompt(question: GuildQuestion) -> ComparedPrompt:
    """Returns a question about a fact of guilds as a prompt whose step is the guild."""
    return ComparedPrompt(
        text=question.text,
        target=f"logit {question.fact.answer} vs {question.other.answer}",
        through=list(guild_concepts(question.fact.guild)),
        other=question.other_text,
        other_through=list(guild_concepts(question.other.guild)),
    )


def _read(text: str, prompt: ComparedPrompt, context: CaseContext) -> PromptText:
    return read_prompt(text, context.tokenizer, context.context_length, prompt.special_tokens)


def _planted_results(context: CaseContext, planted: PlantedTruth, case: CompareCase) -> PlantedResults:
    config = PlantedCase(
        kind="planted",
        runs=list(context.runs),
        neurons=False,
        found=case.found,
        occurrences=case.occurrences,
        resamples=case.resamples,
        confidence=case.confidence,
        seed=case.seed,
    )
    return measure_planted(context, planted.held_out, planted.concepts, planted.matched, config)


def _run_outcome(
    context: CaseContext, group: str, run: str, metrics: pa.Table, concepts: PlantedResults | None
) -> RunOutcome:
    rows = metrics.filter(pc.field("run") == run).to_pylist()
    layers = [row for row in rows if row["layer"] != ALL_LAYERS]
    together = next((row for row in rows if row["layer"] == ALL_LAYERS), None)
    if not layers:
        raise ValueError(f"run {run} has no scores; add its metric table")
    tensors = [
        value
        for each in context.runs[run].values()
        for value in vars(each).values()
        if isinstance(value, Tensor)
    ]
    return RunOutcome(
        group=group,
        run=run,
        parameters=sum(value.numel() for value in tensors),
        features=sum(each.width for each in context.runs[run].values()),
        l0=sum(row["l0"] for row in layers),
        fvu=fmean(row["fvu"] for row in layers),
        delta_ce=None if together is None else together["delta_ce"],
        kl=None if together is None else together["kl"],
        dead=1 - fmean(row["alive"] for row in layers),
        concepts=None if concepts is None else concepts.runs[run],
    )


def _graph(
    model: LinearizedModel, prompt: ComparedPrompt, text: PromptText, context: CaseContext, config: Circuits
) -> FullGraph:
    target, strings = parse_target(prompt.target), context.tokenizer.strings()
    answers = text.answers(target)
    roots, _ = find_roots(model, target, strings, answers, config.logits, config.probability)
    return full_graph(model, roots)
