"""Output scores: whether a feature raises the probability of the tokens that it is said to promote.

For a label by rules these are the next tokens that it names (``says `to` ``). Other labels by rules have no output
score. For a label that a language model writes, they are the tokens whose logits the feature raises most.

In some contexts of the scoring documents in which a feature fires, its activation is doubled at the position where it
fires: what it writes is added once more to every output that it writes to. The score is the share of contexts in which
the log probability of the said tokens together, as the next token, rises. No change counts half. A feature that writes
in a random direction scores about 0.5.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.layout import RULE
from ..core.progress import progress
from ..core.tables import LABEL_OUTPUT, read_table, write_table
from ..corpus.token_names import token_name
from ..corpus.tokens import Tokens
from ..features.basis import FeatureBasis
from ..language_model.hooks import Edit, Site, capture, edited
from ..language_model.lm_head import LMHead, find_lm_head
from ..language_model.model import LanguageModel
from .contexts import FeatureActivations, read_activations, split_bands, spread
from .label_source import PROMOTED, LabelSource
from .model_scores import share_score
from .scores import LabelScore
from .text import shown

CONTEXTS = 4
"""Number of contexts per feature."""
BANDS = 4
"""Number of bands of activation from which contexts are taken."""
LENGTH = 64
"""Largest number of tokens before the position where the feature fires. Earlier ones are left out."""
ROWS = 128
"""Largest number of contexts per forward pass."""
LOGITS = 2**26
"""Largest number of logits that exist at one time."""


@dataclass(frozen=True)
class ScaledContexts:
    """Contexts in each of which one feature is scaled, ordered by feature."""

    feature: Int[np.ndarray, " context"]
    index: Int[np.ndarray, " context"]
    """Index in the flattened token array of the token on which the feature fires."""
    value: Float[np.ndarray, " context"]
    """Its activation."""

    def __len__(self) -> int:
        """Returns the number of contexts."""
        return len(self.feature)

    def parts(self) -> Iterator["ScaledContexts"]:
        """Yields up to `ROWS` contexts at one time."""
        for start in range(0, len(self), ROWS):
            yield ScaledContexts(*(column[start : start + ROWS] for column in vars(self).values()))


def choose_contexts(
    activations: Mapping[int, FeatureActivations], n: int = CONTEXTS, seed: int = 0
) -> ScaledContexts:
    """Returns up to `n` contexts of each feature, as evenly over bands of activation as possible."""
    feature, index, value = [], [], []
    for each, found in activations.items():
        random = np.random.default_rng((seed, each))
        groups = [random.permutation(group) for group in split_bands(found.value, found.value, BANDS)]
        for group, share in zip(groups, spread([len(group) for group in groups], n), strict=True):
            feature += [each] * share
            index += found.index[group[:share]].tolist()
            value += found.value[group[:share]].tolist()
    return ScaledContexts(np.array(feature, int), np.array(index, int), np.array(value, float))


def score_promoted(
    model: LanguageModel, basis: FeatureBasis, tokens: Tokens, source: LabelSource
) -> Callable[[Mapping[int, FeatureActivations]], dict[int, LabelScore]]:
    """Returns a function from activations on the scoring documents to output scores, with the tokens whose logits a
    feature raises most (table `logit`) as those that it is said to promote."""

    def scores(activations: Mapping[int, FeatureActivations]) -> dict[int, LabelScore]:
        promoted = source.promoted(list(activations), PROMOTED)
        said = {feature: [number for number, _ in found] for feature, found in promoted.items()}
        return output_scores(model, basis, tokens, activations, said)

    return scores


def write_label_outputs(
    basis: FeatureBasis,
    model: LanguageModel,
    tokens: Tokens,
    scoring: Int[np.ndarray, " position"],
    ids: Mapping[str, Sequence[int]],
    labels: str | Path,
    activations: str | Path,
    path: Path,
) -> None:
    """Write the table `label_output` of one run and layer: the labels by rules that name next tokens.

    `scoring` is the result of `scoring_index`, and `ids` that of `ids_by_name`. `labels` and `activations` are the
    tables `label` and `activation`. Raises ValueError if a table is damaged.
    """
    wanted = (pc.field("source") == RULE) & pc.field("promoted").is_valid()
    rows = read_table(Path(labels), wanted, ["feature", "label", "promoted"]).to_pylist()
    said = {row["feature"]: [i for name in row["promoted"] for i in ids[name]] for row in rows}
    fires = read_activations(Path(activations), list(said), tokens.context) if said else {}
    fires = {each: found.inside(scoring) for each, found in fires.items()}
    scores = output_scores(model, basis, tokens, fires, said)
    write_table(
        LABEL_OUTPUT,
        [
            {
                "run": basis.run,
                "layer": basis.layer,
                "feature": row["feature"],
                "label": row["label"],
                **scores[row["feature"]].columns("output"),
            }
            for row in rows
            if row["feature"] in scores
        ],
        path,
    )


def ids_by_name(strings: list[str]) -> dict[str, list[int]]:
    """Maps the text of a token in labels to the ids of all tokens with this text, with and without a space before it.

    `strings` has the text of each token id.
    """
    found: dict[str, list[int]] = {}
    for i in range(len(strings)):
        found.setdefault(shown(token_name(strings, i)), []).append(i)
    return found


@torch.inference_mode()
def output_scores(
    model: LanguageModel,
    basis: FeatureBasis,
    tokens: Tokens,
    activations: Mapping[int, FeatureActivations],
    said: Mapping[int, Sequence[int]],
    factor: float = 2.0,
) -> dict[int, LabelScore]:
    """Returns the output score of each feature that fires and has `said` tokens.

    `activations` are those on the scoring documents. `said` maps a feature to the ids of the tokens that
    it is said to promote. Activations are multiplied by `factor`. Raises ValueError if stored tokens are damaged, or if
    logits are not finite.
    """
    chosen = choose_contexts({each: found for each, found in activations.items() if len(said.get(each, ()))})
    if not len(chosen):
        return {}
    head = find_lm_head(model)
    rises, documents = [], []
    with progress(f"output: {basis.run} layer {basis.layer}", len(chosen), "contexts") as bar:
        for part in chosen.parts():
            change, document = _changes(model, head, basis, tokens, part, said, factor)
            rises.append(change)
            documents.append(document)
            bar.update(len(part))
    rise, document = np.concatenate(rises), np.concatenate(documents)
    starts = np.flatnonzero(np.append(True, np.diff(chosen.feature) != 0))
    return {
        int(chosen.feature[start]): share_score(document[start:stop], (np.sign(rise[start:stop]) + 1) / 2)
        for start, stop in zip(starts, np.append(starts[1:], len(chosen)), strict=True)
    }


def _changes(
    model: LanguageModel,
    head: LMHead,
    basis: FeatureBasis,
    tokens: Tokens,
    part: ScaledContexts,
    said: Mapping[int, Sequence[int]],
    factor: float,
) -> tuple[Float[np.ndarray, " context"], Int[np.ndarray, " context"]]:
    """Returns the change of the log probability of the said tokens in each context, and the document of each."""
    text, last, document = _read_contexts(tokens, part.index)
    row = torch.arange(len(part), device=model.device)
    feature, last = torch.from_numpy(part.feature).to(model.device), last.to(model.device)
    added = torch.from_numpy((factor - 1) * part.value).to(model.device)

    def scale(decoder: Tensor) -> Edit:
        written = added[:, None] * decoder.to(model.device)[feature]

        def edit(_x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            y[row, last] += written.to(y.dtype)
            return y

        return edit

    site = Site("unembedding_in")
    before = capture(model, text, [site])[site][row, last]
    edits = {Site(basis.site_out, output): scale(decoder) for output, decoder in basis.decoders.items()}
    with edited(model, edits):
        after = capture(model, text, [site])[site][row, last]
    wanted = [list(dict.fromkeys(said[int(each)])) for each in part.feature]
    change = _log_probability(model, head, after, wanted) - _log_probability(model, head, before, wanted)
    return change.cpu().numpy(), document


def _read_contexts(
    tokens: Tokens, index: Int[np.ndarray, " context"]
) -> tuple[Int[Tensor, "context position"], Int[Tensor, " context"], Int[np.ndarray, " context"]]:
    """Returns the token ids up to each token of `index`, the position of this token, and its document.

    The first token is the BOS, if there is one. Shorter contexts are filled up after the position, which later tokens
    do not affect.
    """
    sequence, position = np.divmod(index, tokens.context)
    rows, own = np.unique(sequence, return_inverse=True)
    token, document = tokens.take(rows)[torch.from_numpy(own)], tokens.take_document(rows).numpy()
    start = np.maximum(position - LENGTH, 0)
    place = torch.from_numpy(start[:, None] + np.arange(min(LENGTH + 1, tokens.context)))
    text = token.gather(1, place.clamp(max=tokens.context - 1))
    if tokens.bos_id is not None:
        text[:, 0] = tokens.bos_id
    return text, torch.from_numpy(position - start), document[own, position]


def _log_probability(
    model: LanguageModel, head: LMHead, hidden: Float[Tensor, "context d"], wanted: Sequence[Sequence[int]]
) -> Float[Tensor, " context"]:
    """Returns the log probability that the next token is one of the wanted ones, in float64."""
    found = []
    size = max(1, LOGITS // head.vocabulary)
    for start in range(0, len(hidden), size):
        logits = head.logits(hidden[start : start + size], slice(0, head.vocabulary)).double()
        model.check_finite(logits, "a logit with a scaled feature")
        scores = logits.log_softmax(-1)
        found += [
            own[torch.tensor(ids, device=own.device)].logsumexp(0)
            for own, ids in zip(scores, wanted[start : start + size], strict=True)
        ]
    return torch.stack(found)
