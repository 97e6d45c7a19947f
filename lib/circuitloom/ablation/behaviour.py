"""Compute the tables of a behaviour: effects of components, and the common circuit of its prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..attribution.tracer import Tracer
from ..config.activations import MLP_OUTPUTS
from ..config.circuits import Behaviour, parse_target
from ..core.progress import progress
from ..core.tables import AGGREGATE_EDGE, AGGREGATE_NODE, CAUSAL, FAITHFULNESS, FEATURE_EFFECT, OUTCOME, Table
from ..corpus.prompt_text import PromptText, print_notes, read_prompt
from ..corpus.templates import FINDING, DrawnPrompt, draw_prompts, group_prompts
from ..corpus.tokenizer import Tokenizer
from ..dictionaries.cross_layer import LayerDictionary
from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel
from .causal_effects import (
    AblationKind,
    CausalEffects,
    causal_effects,
    mean_attribution,
    mean_effect,
    original_logits,
    replacement_values,
)
from .common_circuit import (
    align_drawn,
    common_outcomes,
    edge_rows,
    find_common,
    means_by_layer,
    node_rows,
    target_roots,
)
from .components import Basis, feature_basis, head_basis, neuron_basis
from .faithfulness import FaithfulnessCurve, faithfulness_curve, rank
from .feature_effects import FeatureEffects, capture_resid_mid, feature_effects
from .metrics import Metric, PromptMetric, logit, logit_difference, make_prompt_metrics

Runs = Mapping[str, Mapping[int, LayerDictionary]]
"""Dictionaries by run and layer: runs[run][layer]."""
METRIC_MEASURE = "metric"
"""Value of the column `measure` in the table `outcome` of a behaviour."""
Batches = Sequence[tuple[Tensor, Tensor]]
"""Each batch is a pair of arrays [sequence, position]: token ids, and a mask of the positions to measure."""


@dataclass(frozen=True)
class Budget:
    """Limits on the measurements of a behaviour."""

    measured: int | None = None
    """Largest number of components that are ablated one by one, per prompt and basis. None means no limit.

    Components with the largest |attribution| are ablated. If the limit is 0, components are ranked by attribution
    only."""
    each_position: bool = False
    """Whether each component is also ablated at one position at a time."""
    per_octave: int = 2
    """Number of points of a faithfulness curve per doubling of the number of kept components."""
    per_source: int | None = 64
    """Largest number of tokens on which a feature of resid_mid is ablated. None means no limit."""
    targets: int | None = 32
    """Largest number of changed MLP features that are listed per ablated feature. None means no limit."""


def behaviour_tables(
    name: str, model: LanguageModel, tokenizer: Tokenizer, runs: Runs, behaviour: Behaviour, context: int
) -> dict[str, pa.Table]:
    """Returns the tables of `component_tables` and `common_tables` of a behaviour, keyed by table name.

    Components are taken from `default_bases`. A prompt may have up to `context` tokens. Raises ValueError if a prompt
    cannot be tokenized, is too short or is too long. Also raises ValueError if an answer of a target is not one token.
    What is read in another way than one may think is printed.
    """
    drawn = _draw(behaviour, tokenizer, context)
    prompts, notes = read_prompts(drawn, tokenizer, context)
    print_notes(name, notes)
    budget = Budget(measured=behaviour.measured, per_source=behaviour.per_source, targets=behaviour.targets)
    tables = component_tables(name, model, prompts, runs, budget, behaviour.ablations)
    run = next((run for run, own in runs.items() if all(each.is_transcoder for each in own.values())), None)
    if run is None:
        return tables
    tracer = Tracer(model, tokenizer, run, runs[run], context)
    return tables | common_tables(name, tracer, drawn, prompts, behaviour)


def _draw(behaviour: Behaviour, tokenizer: Tokenizer, context: int) -> list[DrawnPrompt]:
    """Returns the prompts of a behaviour: its templates, filled, or its texts as they are."""
    if behaviour.slots:
        return draw_prompts(behaviour.prompts, behaviour.slots, behaviour.count, behaviour.seed)
    read = [read_prompt(each.text, tokenizer, context, each.special_tokens) for each in behaviour.prompts]
    return group_prompts(behaviour.prompts, read)


def common_tables(
    name: str,
    tracer: Tracer,
    drawn: Sequence[DrawnPrompt],
    prompts: Sequence[PromptMetric],
    behaviour: Behaviour,
) -> dict[str, pa.Table]:
    """Returns the tables `aggregate_node`, `aggregate_edge` and `outcome` of a behaviour, keyed by table name.

    They are about templates with prompts in both halves, and empty if there are none. Ablated features are set to the
    first value of `behaviour.ablations`; a mean is over the finding half.
    """
    halves = [{each.half for each in drawn if each.template == i} for i in range(len(drawn))]
    own = [i for i, each in enumerate(drawn) if len(halves[each.template]) == 2]
    finding = [i for i in own if drawn[i].half == FINDING]
    common = None
    if finding and behaviour.aggregated:
        basis = feature_basis(tracer.run, tracer.dictionaries)
        kind = behaviour.ablations[0]
        values = replacement_values(tracer.language_model, basis, [prompts[i] for i in finding], kind)
        texts = [(each.text, each.target) for each in behaviour.prompts]
        aligned = align_drawn(tracer, drawn, texts, behaviour.slots)
        templates = [each for each in aligned if set(each.prompts) <= set(own)]
        chosen = finding[: behaviour.aggregated]
        means, roots = means_by_layer(basis, values), target_roots(tracer, drawn)
        common = find_common(
            tracer, templates, prompts, roots, chosen, behaviour.common, behaviour.seed, means
        )
    outcome: list[dict[str, Any]] = []
    if common is not None:
        measured = common.measured
        outcome = [
            row
            for row in common_outcomes(
                name, METRIC_MEASURE, common, [(each.text, each.half) for each in drawn]
            )
            if row["prompt"] in measured
        ]
        for i in measured:
            value = prompts[i].metric(original_logits(tracer.language_model, prompts[i])[None])
            first = next(row for row in outcome if row["prompt"] == i)
            outcome.append(first | {"condition": "untouched", "value": float(value)})
    return {
        AGGREGATE_NODE.name: pa.Table.from_pylist(
            [] if common is None else list(node_rows(name, common)), schema=AGGREGATE_NODE.schema
        ),
        AGGREGATE_EDGE.name: pa.Table.from_pylist(
            [] if common is None else list(edge_rows(name, common)), schema=AGGREGATE_EDGE.schema
        ),
        OUTCOME.name: pa.Table.from_pylist(outcome, schema=OUTCOME.schema),
    }


def parse_metric(target: str, prompt: PromptText) -> tuple[Metric, list[str]]:
    """Returns the metric for a target `logit TOKEN` or `logit TOKEN vs TOKEN`, and notes on the tokens that were taken.

    Raises ValueError if an answer is not one token, or if both are the same.
    """
    parsed = parse_target(target)
    answers = prompt.answers(parsed)
    numbers = [answer.token_id for answer in answers]
    metric = logit_difference(*numbers) if parsed.against else logit(*numbers)
    return metric, [answer.note for answer in answers if answer.note]


def read_prompts(
    prompts: Sequence[DrawnPrompt], tokenizer: Tokenizer, context_length: int
) -> tuple[list[PromptMetric], list[str]]:
    """Returns the tokens and the metric of each prompt, and distinct notes on how texts and answers were read. Raises
    ValueError if a text cannot be tokenized, or if an answer is not one token."""
    tokens, metrics, notes = [], [], []
    for prompt in prompts:
        read = read_prompt(prompt.text, tokenizer, context_length, prompt.special_tokens)
        metric, own = parse_metric(prompt.target, read)
        tokens.append(torch.from_numpy(read.token))
        metrics.append(metric)
        notes += [*read.notes, *own]
    return make_prompt_metrics(tokens, metrics, tokenizer.separator_id), list(dict.fromkeys(notes))


def default_bases(model: LanguageModel, runs: Runs) -> list[Basis]:
    """Returns one basis per run of dictionaries, a basis of all attention heads, and a basis of all MLP neurons."""
    return [
        *(feature_basis(run, dictionaries) for run, dictionaries in runs.items()),
        head_basis(model),
        neuron_basis(model),
    ]


def component_tables(
    behaviour: str,
    model: LanguageModel,
    prompts: Sequence[PromptMetric],
    runs: Runs,
    budget: Budget,
    ablations: Sequence[AblationKind] = ("zero", "mean"),
    bases: Sequence[Basis] | None = None,
) -> dict[str, pa.Table]:
    """Returns the tables `causal`, `faithfulness` and `feature_effect` of a behaviour, keyed by table name.

    If `bases` is None, `default_bases` is used. `feature_effect` is measured on the tokens of the prompts. Raises
    ValueError if the features of a run cannot be ablated in the model. For `position_mean`, also raises ValueError if
    prompts differ in length or in the positions to ablate.
    """
    causal, faithfulness = [], []
    bases = default_bases(model, runs) if bases is None else bases
    with progress(f"circuits: {behaviour}", len(bases) * len(ablations) * len(prompts), "prompts") as bar:
        for basis in bases:
            for kind in ablations:
                replacement = replacement_values(model, basis, prompts, kind)
                measured = None
                names = {"behaviour": behaviour, "basis": basis.name, "ablation": kind}
                if budget.measured != 0:
                    measured = [
                        causal_effects(model, basis, p, replacement, most=budget.measured) for p in prompts
                    ]
                    causal += _causal_rows(names, basis, measured)
                if budget.each_position:
                    each = [
                        causal_effects(model, basis, p, replacement, each_position=True, most=budget.measured)
                        for p in prompts
                    ]
                    causal += _causal_rows(names, basis, each)
                scores = {"attribution": mean_attribution(model, basis, prompts, replacement)}
                if measured is not None:
                    scores["effect"] = mean_effect(scores["attribution"], measured)
                for ranking, score in scores.items():
                    curve = faithfulness_curve(
                        model, basis, prompts, rank(score), replacement, budget.per_octave
                    )
                    faithfulness += faithfulness_rows(names | {"ranking": ranking}, len(basis), curve)
                bar.update(len(prompts))
    batches = [(prompt.token[None], prompt.where[None]) for prompt in prompts]
    return {
        CAUSAL.name: _concat(CAUSAL, causal),
        FAITHFULNESS.name: pa.Table.from_pylist(faithfulness, schema=FAITHFULNESS.schema),
        FEATURE_EFFECT.name: feature_effect_table(behaviour, model, runs, batches, budget),
    }


def feature_effect_table(
    behaviour: str,
    model: LanguageModel,
    runs: Runs,
    batches: Batches,
    budget: Budget,
) -> pa.Table:
    """Returns the table `feature_effect`.

    A layer is included if it has an SAE on resid_mid and a dictionary that writes mlp_out or mlp_added. Features are
    ablated at the positions that the masks in `batches` mark.
    """
    tables = []
    for source_run, sources in runs.items():
        for layer, source in sorted(sources.items()):
            if not isinstance(source, Dictionary) or source.site_out != "resid_mid":
                continue
            stream = torch.cat([capture_resid_mid(model, token, where, layer) for token, where in batches])
            for target_run, targets in runs.items():
                target = targets.get(layer)
                if target is None or target.site_out not in MLP_OUTPUTS:
                    continue
                names = {
                    "behaviour": behaviour,
                    "source_run": source_run,
                    "target_run": target_run,
                    "layer": layer,
                }
                pieces = feature_effects(model, source, target, stream, budget.per_source, budget.targets)
                tables += [_effect_rows(names, piece) for piece in pieces]
    return _concat(FEATURE_EFFECT, tables)


def _causal_rows(names: dict[str, Any], basis: Basis, effects: Sequence[CausalEffects]) -> list[pa.Table]:
    """Returns one table per prompt, with the prompt's rows of the table `causal`."""
    tables = []
    for prompt, each in enumerate(effects):
        part, number = (column.cpu().numpy() for column in basis.locate(each.component))
        position = each.position.cpu().numpy()
        parts = np.array([(own.kind, own.run, own.site.layer) for own in basis.parts], dtype=object)[part]
        columns = {
            "prompt": prompt,
            "kind": parts[:, 0],
            "run": parts[:, 1],
            "layer": parts[:, 2],
            "component": number,
            "position": pa.array(position, mask=position < 0),
            **{
                name: getattr(each, name).double().cpu().numpy()
                for name in ("activation", "attribution", "effect", "kl")
            },
        }
        tables.append(_table(CAUSAL, names | columns, len(each)))
    return tables


def faithfulness_rows(
    names: dict[str, Any], n_components: int, curve: FaithfulnessCurve
) -> list[dict[str, Any]]:
    """Returns the rows of the table `faithfulness`, one row per number of kept components.

    `names` holds the columns with the same value in all rows: behaviour, basis, ablation and ranking.
    """
    columns = {
        "n_kept": curve.n_kept,
        "metric_kept": curve.kept.double().mean(0),
        "metric_removed": curve.removed.double().mean(0),
        "faithfulness": curve.faithfulness,
        "remaining": curve.remaining,
        "kl": curve.kl.double().mean(0),
    }
    common = {
        **names,
        "n_components": n_components,
        "n_prompts": len(curve.untouched),
        "metric_untouched": float(curve.untouched.double().mean()),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [common | {name: _defined(v) for name, v in zip(columns, row, strict=True)} for row in rows]


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _effect_rows(names: dict[str, Any], effects: FeatureEffects) -> pa.Table:
    """Returns rows of the table `feature_effect`."""
    columns = {
        name: getattr(effects, field).cpu().numpy()
        for name, field in (
            ("source", "source"),
            ("target", "target"),
            ("n_tokens", "n_tokens"),
            ("n_changed", "n_changed"),
            ("effect", "effect"),
            ("absolute_effect", "absolute"),
        )
    }
    return _table(FEATURE_EFFECT, names | columns, len(effects))


def _table(table: Table, columns: Mapping[str, Any], n: int) -> pa.Table:
    """Returns a table of n rows. A single value is repeated in all rows."""
    arrays = {}
    for name, (kind, _) in table.columns.items():
        value = columns[name]
        if isinstance(value, str | int):
            value = pa.repeat(pa.scalar(value, kind), n)
        arrays[name] = value.cast(kind) if isinstance(value, pa.Array) else pa.array(value, kind)
    return pa.table(arrays, schema=table.schema)


def _concat(table: Table, parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([table.schema.empty_table(), *parts]).combine_chunks()
