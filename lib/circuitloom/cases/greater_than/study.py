"""The case study of greater-than, from its template to what was found."""

from collections import defaultdict
from collections.abc import Iterator

from ...attribution.paths import EMBEDDING, FEATURE, HEAD
from ...config.cases.greater_than import GreaterThanCase
from ..case_report import CaseReport, number
from ..claims import Bootstrap
from ..context import FINDING, TESTING, CaseContext
from .claims import make_claims
from .figures import draw_kept, draw_metric, draw_years
from .measured import YearMeasurements, measure_all
from .rows import make_tables


def study_greater_than(name: str, opened: CaseContext, case: GreaterThanCase) -> CaseReport:
    """What a model does with the start of a span of years, and how.

    Raises ValueError where too few prompts have a start year of one token, or a layer or feature named is not there.
    """
    found = measure_all(name, opened, case)
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    captions = {
        "metric": "The metric with each layer's MLP replaced by its transcoder, or ablated, and with all replaced at "
        "once; bars are means over the prompts with their intervals.",
        "kept": f"The metric with k features, or neurons, of layer {found.layer} alone, those of the highest variance "
        "first; bands are intervals over the testing half.",
        "years": f"Features of layer {found.layer} by year: how strongly they fire behind the last token, how far "
        "their weights say that they read the year, and which years they promote as the answer.",
    }
    figures = {
        "metric": draw_metric(found, bootstrap, case.replaced),
        "kept": draw_kept(found, bootstrap, case.small),
        "years": draw_years(found),
    }
    return CaseReport(
        case=name,
        title="a span of years ends after it starts",
        claims=make_claims(found, case),
        tables=make_tables(name, found, opened.tokenizer.strings()),
        figures={key: (figure, captions[key]) for key, figure in figures.items()},
        remarks=list(_remarks(found, case, opened.tokenizer.strings())),
    )


def _remarks(found: YearMeasurements, case: GreaterThanCase, strings: list[str]) -> Iterator[str]:
    prompts, answers = found.prompts, found.answers
    halves = [prompts.half.count(half) for half in (FINDING, TESTING)]
    yield (
        f"The metric is the probability of later years less that of all others, softmax over the {len(answers.year)} "
        f"two-digit years that are single tokens. {len(prompts)} prompts, such as `{prompts.text[0]}`, with start "
        f"years from {int(prompts.start.min()):02d} to {int(prompts.start.max()):02d}: {halves[0]} to find on, "
        f"{halves[1]} to test on; {prompts.dropped} were left out, being of another length, or their start year no "
        "token of its own. Behind an MLP that is replaced nothing of what the transcoder misses is kept; BOS keeps its "
        "original."
    )
    effect = found.layer_effect.mean(1)
    order = effect.argsort(descending=True).tolist()
    listed = ", ".join(f"layer {i} {number(float(effect[i]))}" for i in order[:3])
    how = (
        "named" if case.layer is not None or case.feature is not None else "the one that matters most by this"
    )
    yield (
        f"Set to its mean over the prompts behind the last token, an MLP takes from the metric: {listed}. The MLP "
        f"studied is layer {found.layer}'s, {how}."
    )
    yield _on_heads(found)
    yield _on_features(found)
    yield f"{_on_circuit(found)} {_on_ends(found)}"
    yield _on_leaves(found, strings)


def _on_heads(found: YearMeasurements) -> str:
    shifts = found.shifts
    shares = shifts.shift.mean(1) / shifts.total.mean()
    listed = ", ".join(
        f"head {shifts.layer[i]}.{shifts.head[i]} {number(float(shares[i]))}"
        for i in found.finding_shifts.order()[:3].tolist()
    )
    return (
        "Patched behind the last token from a prompt with another start year, heads carry of what the whole prompt "
        f"changes: {listed}; found on one half, measured on the other."
    )


def _on_features(found: YearMeasurements) -> str:
    years = found.years
    fired = len(years.year)
    listed = ", ".join(
        f"{found.layer}/{feature} ({number(float(found.variance[feature]))}, most at {int(years.year[at]):02d})"
        for feature, at in zip(years.feature.tolist(), years.activation.argmax(1).tolist(), strict=True)
    )
    through = "" if years.head is None else " De-embedding goes through head {}.{}.".format(*years.head)
    return (
        f"Features of layer {found.layer} of the highest variance over the prompts (variance; of {fired} start years, "
        f"the one at which they fire most): {listed}.{through}"
    )


def _on_circuit(found: YearMeasurements) -> str:
    circuit, alone = found.circuit, found.alone["mean"]
    features, heads = len(circuit.parts(FEATURE)), len(circuit.parts(HEAD))
    parts = [part for part in found.basis.parts if part.kind == "feature"]
    total = sum(part.width for part in parts)
    every = sum(part.width for part in found.basis.parts) - total
    return (
        f"The circuit, from greedy paths of {circuit.prompts} prompts, has {features} of {total} features and {heads} "
        f"of {every} heads. Of a metric of {number(float(alone.untouched.mean()))} it keeps, all else set to the mean, "
        f"{number(float(alone.kept.mean()))}; as many drawn features with the same heads keep "
        f"{number(float(alone.drawn.mean()))}, nothing at all {number(float(alone.none.mean()))}. With its "
        f"features alone set to the mean, the others and all heads keep {number(float(alone.featureless.mean()))}."
    )


def _on_ends(found: YearMeasurements) -> str:
    circuit, place = found.circuit, found.prompts.place
    ends: dict[int, float] = defaultdict(float)
    for (kind, _, _, position), values in circuit.contribution.items():
        if kind == EMBEDDING:
            ends[position] += sum(values) / circuit.prompts
    own, total = ends.get(place, 0.0), sum(ends.values())
    return (
        f"Of {number(total)} that its paths bring from tokens' embeddings, {number(own)} is the start year's."
    )


def _on_leaves(found: YearMeasurements, strings: list[str]) -> str:
    leaves, prompts = found.leaves, found.prompts
    value = leaves.token.sum(1) + leaves.error.sum((1, 2)) + leaves.position.sum(1) + leaves.constant
    tokens = leaves.token.mean(0)
    best = tokens.abs().argsort(descending=True)[:3].tolist()
    last = prompts.token.shape[1] - 1

    def called(position: int) -> str:
        if position == prompts.place:
            return "the start year"
        here = prompts.token[:, position]
        if (here == here[0]).all():
            return repr(strings[int(here[0])].strip())
        return f"the token {last - position} before the last" if position < last else "the last token"

    listed = ", ".join(f"{called(i)} {number(float(tokens[i]))}" for i in best)
    error = float((leaves.error.abs().sum((1, 2)) / leaves.size).mean())
    share = float((leaves.token[:, prompts.place].abs() / leaves.size).mean())
    return (
        "The mean logit of later years less that of the others, "
        f"{number(float(value.mean()))} on {len(value)} prompts, is made of what flows from tokens, positions, errors "
        f"and biases through all features and heads: the largest tokens add {listed}. Of all that flows by magnitude, "
        f"{number(share)} is the start year's token and {number(error)} what transcoders miss."
    )
