"""Estimates what each case study runs through the model, from the counts of the passes of its steps."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from ..config import ModelShape, Study
from ..config.cases import CompareCase, DifferenceCase, FeatureCase, GreaterThanCase
from ..config.cases.feature import EXCHANGES
from .sizes import BYTES_PER_TOKEN, vocabulary

TOP_SHARE, CIRCUIT_SHARE = 2.0, 1.0
"""Size of a circuit before and after pruning, in units of the square root of the number of components. The sizes of a
study are only known when it has run; these are between those of quickstart and of Gemma 3 270M (docs/benchmarks)."""
ROUNDS = 4
"""Number of rounds of pruning."""
QUESTION = "the Genoa brewer drinks"
"""A question of guilds. All are about as long."""
BACKWARD = 3
"""A forward and a backward pass, in forward passes."""
TRACE_PASSES = 6
"""Cost of linearizing a prompt and tracing one target, in forward passes."""
COMMON_PASSES = 26
"""Number of passes per prompt that measure the common circuit and the random sets of features beside it."""
GRAPH_PASSES = 100
"""Cost of an attribution graph with its checks, in forward passes."""


class CaseLoad(NamedTuple):
    """What a case study runs through the model."""

    ablated: float = 0.0
    """Number of tokens of passes in which the dictionaries of all layers read and write."""
    plain: float = 0.0
    """Number of tokens of other passes."""
    passes: float = 0.0
    """Number of passes of one prompt, each with an unembedding of its last position."""
    held_out: float = 0.0
    """Number of held-out tokens that the dictionaries of all layers encode."""
    vocabulary: float = 0.0
    """Number of embeddings that the dictionary of layer 0 encodes."""


def case_load(study: Study, name: str, held_out: float) -> CaseLoad:
    """Returns the load of a case study. `held_out` is the number of held-out tokens of the corpus."""
    case = study.cases[name]
    if case.alone:
        return CaseLoad()
    layers = len(study.layers)
    width = study.runs[study.case_runs(name)[0]].width
    if isinstance(case, DifferenceCase):
        return difference_load(case, layers * width, study.shape)
    if isinstance(case, GreaterThanCase):
        return greater_than_load(case, width, study.shape)
    tokens = min(study.evaluation.tokens or held_out, held_out)
    if isinstance(case, CompareCase):
        return compare_load(case, tokens)
    if isinstance(case, FeatureCase):
        return feature_load(case, min(case.tokens or tokens, held_out), study.shape)
    return CaseLoad(plain=tokens, held_out=tokens)


def difference_load(case: DifferenceCase, features: int, shape: ModelShape) -> CaseLoad:
    """Returns the load of a case study of a logit difference. `features` is the number of features of all layers."""
    components = features + shape.layers * shape.heads
    prompts = math.ceil(case.count / len(case.prompts)) * len(case.prompts)
    half, length = prompts / 2, _length([prompt.text for prompt in case.prompts])
    top, circuit = (round(share * components**0.5) for share in (TOP_SHARE, CIRCUIT_SHARE))
    few = case.measured is not None and top > case.measured
    measured = min(circuit, case.measured or circuit)
    # two rankings, of sizes that double; then the test curve, of two sizes per octave
    search, test = 2 * 2 * _sizes(components, 1), 2 * _sizes(components, 2)
    search += math.log2(max(2, top))
    search += ROUNDS * _sizes(top, 4)
    search += 0 if few else top + (ROUNDS - 1) * top / 2
    test += 2 * case.subsets + measured
    passes = half * (search + test) + 6 * prompts
    passes += COMMON_PASSES * prompts * (case.aggregated > 0)
    attributions = BACKWARD * half * (1 + (ROUNDS if few else 0))
    plain = case.traced * GRAPH_PASSES
    if case.aggregated:
        plain += prompts + TRACE_PASSES * min(case.aggregated, half)
    if case.compare:
        neurons = shape.layers * (shape.d_mlp + shape.heads)
        plain += half * (BACKWARD + 2 * 2 * _sizes(neurons, 1) + 2 * _sizes(neurons, 2))
    every = passes + attributions + plain
    return CaseLoad(length * (passes + attributions), length * plain, every)


def greater_than_load(case: GreaterThanCase, width: int, shape: ModelShape) -> CaseLoad:
    """Returns the load of a case study of greater-than. `width` is the number of features of a layer."""
    layers, neurons = shape.layers, shape.d_mlp
    years = case.last - case.first + 1
    prompts = min(years * case.fillings, case.prompts or math.inf)
    half, length = prompts / 2, _length([case.template])
    # a pass starts at the layer that it edits: half of the layers on average
    plain = prompts * (1 + 3 * layers / 2) + half * layers / 2
    plain += 2 * half * shape.heads * layers / 2
    # features and neurons of one layer, with zero and mean ablation
    plain += half * 2 * 2 * (_sizes(width, 2) + _sizes(neurons, 2))
    ablated = prompts + 2 * 7 * half + 2 * half
    plain += 2 * case.traced * TRACE_PASSES * case.length
    if case.aggregated:
        ablated += 2 * COMMON_PASSES * min(case.aggregated, half)
        plain += (2 + TRACE_PASSES) * min(case.aggregated, half)
    return CaseLoad(length * ablated, length * plain, ablated + plain)


def feature_load(case: FeatureCase, held_out: float, shape: ModelShape) -> CaseLoad:
    """Returns the load of a case study of a feature. `held_out` is the number of held-out tokens that it reads."""
    pairs, length = case.prompts * len(case.texts), _length([*case.texts, *case.edited])
    # texts and edits are linearized, half of the texts are tested with exchanges of up to three tokens
    linearized = 2 * pairs + TRACE_PASSES * case.traced
    tests = pairs / 2 * (2 * EXCHANGES + 3 + (3 if case.effect else 0))
    return CaseLoad(
        length * linearized, length * tests, linearized + tests / EXCHANGES, held_out, vocabulary(shape)
    )


def compare_load(case: CompareCase, tokens: float) -> CaseLoad:
    """Returns the load of a comparison. `tokens` is the number of held-out tokens that the concepts are scored on."""
    texts = [each.text for each in case.prompts] + [QUESTION] * len(case.questions)
    patched = [each.other is not None for each in case.prompts] + [True] * len(case.questions)
    prompts, length = case.count * len(case.runs_named), _length(texts)
    scored = tokens if case.concepts else 0.0
    # a prompt with another text has a graph of this text, too
    passes = prompts * (GRAPH_PASSES * (1 + fmean(patched)) + case.ablated)
    return CaseLoad(plain=length * passes + scored, passes=passes, held_out=scored)


def _length(texts: Sequence[str]) -> float:
    """Returns the mean number of tokens of templates, BOS included. A slot counts as it is written."""
    return fmean(len(text.encode()) / BYTES_PER_TOKEN + 1 for text in texts)


def _sizes(components: int, per_octave: int) -> float:
    """Returns the number of sizes of a faithfulness curve."""
    return 2 + per_octave * math.log2(max(2, components))
