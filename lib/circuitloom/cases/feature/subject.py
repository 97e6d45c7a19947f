"""The subject of the case: pairs of texts and their edits, and the feature that tells them apart."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...attribution.linearized_model import LinearizedModel
from ...config.cases import FeatureCase
from ...config.circuits import parse_place
from ...config.evaluation import Evaluation
from ...evaluation.concept_matching import encode, scored_activations
from ...evaluation.held_out import HeldOut
from ...language_model.model import Site
from ..context import FINDING, TESTING, CaseContext, fill
from .choosing import Chosen, choose_by_concept, choose_by_contrast

SPARE = 20
"""Times as many pairs are drawn as are wanted: some differ in their edits alone."""


class Pair(NamedTuple):
    """A text at whose last token the feature is to fire, and its edit, at whose it is not."""

    text: str
    edited: str
    half: str
    """finding or testing."""


@dataclass(frozen=True)
class Subject:
    """The feature, where it fires, and what has been read of it."""

    chosen: Chosen
    fires: Bool[Tensor, "sequence position"]
    """On held-out text, above the threshold."""
    on: Float[Tensor, " pair"]
    """Its activation at the texts' last tokens."""
    off: Float[Tensor, " pair"]
    """The same of the edits."""

    @property
    def name(self) -> str:
        """LAYER/NUMBER."""
        return f"{self.chosen.layer}/{self.chosen.feature}"


def draw_pairs(case: FeatureCase) -> list[Pair]:
    """The texts, each with one edit, those of each template for finding and for testing in turn; no text twice."""
    pairs = []
    for text, edited in zip(case.texts, case.edited, strict=True):
        distinct: dict[str, str] = {}
        for drawn, edit in fill([text, edited], case.slots, SPARE * case.prompts, case.seed):
            distinct.setdefault(drawn, edit)
        halves = zip(list(distinct.items())[: case.prompts], itertools.cycle((FINDING, TESTING)))
        pairs += [Pair(*each, half) for each, half in halves]
    if {pair.half for pair in pairs} != {FINDING, TESTING}:
        raise ValueError(
            "the templates give one text in all; the case needs texts to find and to test on: add words"
        )
    return pairs


def find_subject(
    opened: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    prompts: Sequence[tuple[LinearizedModel, LinearizedModel]],
) -> Subject:
    """The feature of the case, found on the finding half or named, and where it fires.

    Raises ValueError where it is not there, or nothing fires on any text.
    """
    sites = [Site("mlp_in", layer) for layer in opened.transcoders]
    inputs = scored_activations(opened.model, sites, held_out, evaluation.batch)
    codes = {site.layer: encode(opened.transcoders[site.layer], x) for site, x in inputs.items()}
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING]
    on, off = (
        {
            layer: torch.stack([last_activations(pair[side], layer) for pair in prompts])
            for layer in opened.transcoders
        }
        for side in (0, 1)
    )
    found_on, found_off = ({layer: z[finding] for layer, z in side.items()} for side in (on, off))
    if case.concept is not None and case.feature is None:
        chosen = choose_by_concept(codes, found_on, concepts, case.concept, held_out, evaluation)
    else:
        place = None if case.feature is None else parse_place(case.feature)
        only = None if place is None else (place.layer, place.feature)
        if only is not None and (only[0] not in on or only[1] >= on[only[0]].shape[1]):
            raise ValueError(f"there is no feature {case.feature} in {opened.run}; name another")
        chosen = choose_by_contrast(found_on, found_off, only)
    code = codes[chosen.layer]
    mine = (code.feature == chosen.feature) & (code.value > chosen.threshold)
    fired = torch.zeros(held_out.n_tokens, dtype=torch.bool)
    fired[code.token[mine].long()] = True
    fires = torch.zeros_like(held_out.scored)
    fires[held_out.scored] = fired
    own = chosen.layer, chosen.feature
    return Subject(chosen, fires, on[own[0]][:, own[1]], off[own[0]][:, own[1]])


def last_activations(prompt: LinearizedModel, layer: int) -> Float[Tensor, " feature"]:
    """Activations of all features of a layer at a prompt's last token."""
    z = prompt.frozen.resid_final.new_zeros(prompt.dictionaries[layer].width)
    active = prompt.active(layer, len(prompt.frozen) - 1)
    z[prompt.features.feature[active]] = prompt.features.activation[active]
    return z.cpu()
