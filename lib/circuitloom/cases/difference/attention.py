"""Why a head reads the right answer's place in the prompt: its score by what the sources are to query and key.

A head moves the right answer to the last position if it reads the position where the answer stood. Its score there,
minus the mean score of the other keys, is the *lead*. The lead is a sum over pairs of sources, grouped by their place:

- on the query's side: sources at the last position (`current`), at earlier positions (`earlier`), biases (`constant`)
- on the key's side, relative to each key: sources at its position (`own`), at the position before (`previous`), at
  other positions (`earlier`), biases (`constant`)

An induction head reads the token after an earlier copy of the current token: `previous` meets `current`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.score_effects import SideAblation, ablate_sides
from ...attribution.attention_scores import attribute_scores
from ...attribution.direct_effects import source_columns
from ...attribution.linearized_model import LinearizedModel
from ...attribution.targets import find_roots, read_answers
from ...attribution.tracer import Tracer
from ...config.circuits import parse_target
from ...corpus.templates import FINDING, TESTING, DrawnPrompt
from ...language_model.query_key import HeadEdge
from ..claims import Bootstrap, Claim, make_claim, ratio

QUERY_PLACES = ("current", "earlier", "constant")
KEY_PLACES = ("own", "previous", "earlier", "constant")
"""Groups of sources of each side, in the order of `AnswerAttention.lead`."""
CONSTANT, LEFT_OUT = -1, -2
"""Positions that stand for the constant, and for features, which belong to no group."""


@dataclass(frozen=True)
class AnswerPlace:
    """A prompt with the last position at which the right answer stands."""

    prompt: DrawnPrompt
    model: LinearizedModel
    key: int

    @property
    def query(self) -> int:
        """The last position."""
        return len(self.model.captured) - 1


@dataclass(frozen=True)
class AnswerAttention:
    """The head that reads the right answer most, on the prompts of the testing half."""

    layer: int
    head: int
    found: float
    """Mean attention to the answer's place on the finding half, by which the head was chosen."""
    pattern: Float[Tensor, " prompt"]
    """Attention to the answer's place."""
    lead: Float[Tensor, "prompt query_place key_place"]
    """Parts of the lead, in units of the score."""
    without_previous: Float[Tensor, " prompt"]
    """Attention if the key does not have the embedding of the token before it, with nothing else held."""
    without_current: Float[Tensor, " prompt"]
    """Attention if the query does not have the embedding of the last token, with nothing else held."""
    difference_drop: Float[Tensor, " prompt"]
    """Drop of the logit difference if the key does not have the embedding of the token before it."""
    frozen_error: float
    """Largest difference between drops of the score predicted by QK attribution and measured with all else frozen."""


@torch.inference_mode()
def measure_attention(tracer: Tracer, drawn: Sequence[DrawnPrompt]) -> AnswerAttention | None:
    """Returns why the head that reads the answer most on the finding half reads it, on the testing half. Returns None
    if the answer stands in no prompt of one half."""
    halves: dict[str, list[AnswerPlace]] = {FINDING: [], TESTING: []}
    for prompt in drawn:
        if (place := _find_answer(tracer, prompt)) is not None:
            halves[prompt.half].append(place)
    if not halves[FINDING] or not halves[TESTING]:
        return None
    # heads of layer 0 read embeddings alone, so no key can know the token before it
    patterns = torch.stack(
        [
            torch.stack([layer.pattern[:, each.query, each.key] for layer in each.model.captured.layers[1:]])
            for each in halves[FINDING]
        ]
    ).mean(0)
    layer, head = divmod(int(patterns.argmax()), patterns.shape[1])
    rows = [_measure(tracer, each, layer + 1, head) for each in halves[TESTING]]
    columns = list(zip(*rows, strict=True))
    return AnswerAttention(
        layer + 1,
        head,
        float(patterns.max()),
        *(torch.stack(column).double().cpu() for column in columns[:-1]),
        frozen_error=max(columns[-1]),
    )


def _find_answer(tracer: Tracer, prompt: DrawnPrompt) -> AnswerPlace | None:
    read = tracer.read(prompt.text, prompt.special_tokens)
    answer = read_answers(parse_target(prompt.target), read)[0].token_id
    # the key must have a token before it, and the query must not be the answer itself
    places = [i for i in range(2, len(read.token) - 1) if int(read.token[i]) == answer]
    return AnswerPlace(prompt, tracer.linearize(read), places[-1]) if places else None


def _measure(
    tracer: Tracer, place: AnswerPlace, layer: int, head: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    model, query, key = place.model, place.query, place.key
    scores = tracer.scores(model)
    allowed = scores.recorded[layer].allowed[query]
    # the first position has no token before it
    keys = [at for at in range(1, query + 1) if allowed[at]]
    positions = _source_positions(model)
    edge = HeadEdge(layer, head, query, key)
    blocks: dict[int, Tensor] = {}
    columns = source_columns(model)
    previous, current = columns.embeddings.start + key - 1, columns.embeddings.start + query
    # a feature is no end: what it adds to a query or key belongs to the tokens that make it fire
    edges = [HeadEdge(layer, head, query, at) for at in keys]
    for each in attribute_scores(model, scores, edges, total=True):
        at = each.edge.key
        query_places = torch.stack([_sum(each.query, mask) for mask in _query_masks(positions, query)])
        key_places = torch.stack([_sum(each.key, mask) for mask in _key_masks(positions, at)])
        blocks[at] = each.scale * query_places @ key_places.T
    [direct] = attribute_scores(model, scores, [edge])
    predicted = [float(direct.key_effects[previous]), float(direct.query_effects[current])]
    others = torch.stack([blocks[at] for at in keys if at != key])
    leads = blocks[key] - others.mean(0)
    target = parse_target(place.prompt.target)
    read = tracer.read(place.prompt.text, place.prompt.special_tokens)
    roots, _ = find_roots(model, target, tracer.strings, read_answers(target, read))
    drops = ablate_sides(
        tracer.language_model,
        model,
        [SideAblation(edge, "key", previous), SideAblation(edge, "query", current)],
        [roots.targets],
    )
    pattern = model.captured.layers[layer].pattern[head, query, key]
    errors = [abs(float(drops.frozen[i]) - predicted[i]) for i in range(2)]
    return (
        pattern,
        leads,
        pattern - drops.pattern[0],
        pattern - drops.pattern[1],
        drops.targets[0, 0],
        max(errors),
    )


def _source_positions(model: LinearizedModel) -> Int[Tensor, " source"]:
    """Returns the position of each source; CONSTANT or LEFT_OUT for those without one."""
    columns, every = source_columns(model), torch.arange(len(model.captured))
    features = torch.full_like(model.features.position, LEFT_OUT)
    parts = [features, every.repeat(columns.layers), every, every, torch.tensor([CONSTANT])]
    return torch.cat([part.to(model.features.position.device) for part in parts])


def _query_masks(positions: Int[Tensor, " source"], query: int) -> list[Tensor]:
    token = positions >= 0
    return [positions == query, (positions != query) & token, positions == CONSTANT]


def _key_masks(positions: Int[Tensor, " source"], key: int) -> list[Tensor]:
    token, own, previous = positions >= 0, positions == key, positions == key - 1
    return [own, previous & token, ~own & ~previous & token, positions == CONSTANT]


def _sum(side: Float[Tensor, "source d_head"], mask: Tensor) -> Float[Tensor, " d_head"]:
    return side[mask].sum(0)


def attention_claims(
    attention: AnswerAttention, attends: float, share: float, remaining: float, bootstrap: Bootstrap
) -> list[Claim]:
    """Returns the claims about the head that reads the right answer."""
    head = f"head {attention.layer}.{attention.head}"
    lead = attention.lead.sum((1, 2))
    previous = attention.lead[:, :, KEY_PLACES.index("previous")]

    def columns(*values: Tensor):
        return torch.stack(values, 1).numpy()

    return [
        make_claim(
            "attends",
            f"mean attention of {head} from the last position to the right answer's place",
            attention.pattern.tolist(),
            attends,
            bootstrap,
        ),
        make_claim(
            "previous_token",
            f"share of the score's lead in {head} that key sources at the token before the answer hold",
            columns(previous.sum(1), lead),
            share,
            bootstrap,
            ratio,
        ),
        make_claim(
            "meets_current",
            f"share of the lead in {head} that pairs of these key sources with query sources at the last token hold",
            columns(previous[:, QUERY_PLACES.index("current")], lead),
            share,
            bootstrap,
            ratio,
        ),
        make_claim(
            "key_needs_previous",
            f"share of the attention of {head} that remains if its key lacks the embedding of the token before, "
            "nothing held",
            columns(attention.without_previous, attention.pattern),
            remaining,
            bootstrap,
            ratio,
            relation="below",
        ),
        make_claim(
            "query_needs_current",
            f"share of the attention of {head} that remains if its query lacks the embedding of the last token, "
            "nothing held",
            columns(attention.without_current, attention.pattern),
            remaining,
            bootstrap,
            ratio,
            relation="below",
        ),
    ]


def attention_sentences(attention: AnswerAttention) -> list[str]:
    """Returns what the result says about the head."""
    lead = attention.lead.mean(0)
    total = float(lead.sum())
    parts = sorted(
        (
            (float(lead[i, j]), f"{query} with {key}")
            for i, query in enumerate(QUERY_PLACES)
            for j, key in enumerate(KEY_PLACES)
        ),
        key=lambda part: -abs(part[0]),
    )
    named = ", ".join(f"{name} {value:+.2f}" for value, name in parts[:4])
    return [
        f"Head {attention.layer}.{attention.head} reads the right answer's place most on the finding half (attention "
        f"{attention.found:.2f}). On the {len(attention.pattern)} testing prompts in which the answer stands, its "
        f"score there leads the other keys' by {total:.2f} on average. Largest parts of the lead, query sources with "
        f"key sources: {named}. `current` are sources at the last position, `own` and `previous` those at the key and "
        "at the token before it.",
        f"If the key lacks the embedding of the token before it, the logit difference falls by "
        f"{float(attention.difference_drop.mean()):.2f} on average. Drops of scores that QK attribution predicts and "
        f"those measured with all else frozen differ by at most {attention.frozen_error:.1e}.",
    ]
