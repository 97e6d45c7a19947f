"""Sparse probing (Gurnee et al. 2023): a logistic regression predicts a label of each token from k features.

Features are chosen and probes are trained on one half of the documents (training). The score is the balanced accuracy
on the other half, (recall of the label + recall of its absence) / 2, whose value by chance is 0.5.

1. `make_tasks` keeps the labels that are frequent enough in both halves.
2. `choose_features` takes the features with the largest differences of means between tokens with and without a label.
3. `fit_probe` trains a probe on these features, and `fit_dense_probes` probes on all dimensions of an activation.
4. `LabelCounts` scores a probe, with each document's influence on the score, from which `interval` follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ..core.intervals import half_interval
from .concepts import SparseActivations
from .held_out import HeldOut

PENALTY = 1e-4
"""Weight of the L2 penalty on the coefficients of scaled features. The loss is a mean over tokens."""
PER_CLASS = 10_000
"""Most tokens with a label, and without it, on which a sparse probe is trained. They are evenly spaced."""
NEWTON_STEPS = 25
DENSE_STEPS = 60
"""Most steps of L-BFGS for probes on all dimensions."""


@dataclass(frozen=True)
class ProbeTasks:
    """Labels of the scored tokens, and the halves of the documents."""

    names: tuple[str, ...]
    label: Bool[Tensor, "token task"]
    training: Bool[Tensor, " token"]
    document: Int[Tensor, " token"]
    """Number of each token's document."""

    @cached_property
    def testing_documents(self) -> tuple[Int[Tensor, " token"], int]:
        """The document of each token of the testing half, numbered from 0 without gaps, and their number."""
        number = self.document[~self.training].unique(return_inverse=True)[1]
        return number, int(number.max()) + 1

    @cached_property
    def training_rows(self) -> list[Int[Tensor, " row"]]:
        """The tokens on which the sparse probes of each task are trained."""
        found = []
        for label in self.label.T:
            rows = [(self.training & (label == value)).nonzero()[:, 0] for value in (True, False)]
            found.append(torch.cat([each[:: -(-len(each) // PER_CLASS)] for each in rows]))
        return found

    @cached_property
    def testing_counts(self) -> list["LabelCounts"]:
        """The counts of each task in the testing half."""
        document, n = self.testing_documents
        return [LabelCounts(label, document, n) for label in self.label[~self.training].T.contiguous()]


def make_tasks(
    labels: Mapping[str, Bool[Tensor, " token"]], held_out: HeldOut, least: int
) -> tuple[ProbeTasks, list[str]]:
    """Returns the tasks, and the names of the labels that fewer than `least` tokens of a half have, or lack.

    Documents with even numbers are the training half. Raises ValueError if a half has no document.
    """
    number = held_out.document[held_out.scored]
    training = number % 2 == 0
    if training.all() or not training.any():
        raise ValueError(
            f"the held-out text has {len(number.unique())} document(s), and probes are trained on one half of the "
            "documents and tested on the other; score more tokens (--tokens), or a corpus with more documents"
        )
    kept, left_out = [], []
    for name, label in labels.items():
        counts = [
            int((label[half] == value).sum()) for half in (training, ~training) for value in (True, False)
        ]
        (kept if min(counts) >= least else left_out).append(name)
    stacked = (
        torch.stack([labels[name] for name in kept], 1)
        if kept
        else torch.zeros(len(number), 0, dtype=torch.bool)
    )
    return ProbeTasks(tuple(kept), stacked, training, number), left_out


class ProbeInputs:
    """Activations [token, feature] from which probes read a few columns."""

    def __init__(
        self, activations: SparseActivations | Float[Tensor, "token feature"], tasks: ProbeTasks
    ) -> None:
        self._tasks = tasks
        self._dense = activations if isinstance(activations, Tensor) else None
        if isinstance(activations, SparseActivations):
            order = activations.feature.argsort(stable=True)
            self._token = activations.token[order].long()
            self._value = activations.value[order].float()
            counts = torch.bincount(activations.feature, minlength=activations.width)
            self._start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def mean_differences(self) -> Float[Tensor, "feature task"]:
        """Returns mean(activation | label) - mean(activation | no label) on the training half."""
        training = self._tasks.training
        # the last column is for all tokens of the half
        label = F.pad(self._tasks.label, (0, 1), value=True) & training[:, None]
        n = label.sum(0)
        if self._dense is not None:
            sums = self._dense.float().T @ label.float()
        else:
            sums = F.embedding_bag(
                self._token, label.float(), self._start[:-1], mode="sum", per_sample_weights=self._value
            )
        return sums[:, :-1] / n[:-1] - (sums[:, -1:] - sums[:, :-1]) / (n[-1] - n[:-1])

    def select(self, features: Sequence[int]) -> Float[Tensor, "k token"]:
        """Returns the activations of some features, one feature after the other."""
        if self._dense is not None:
            return self._dense[:, features].float().T.contiguous()
        x = torch.zeros(len(features), len(self._tasks.training))
        for row, feature in enumerate(features):
            entries = slice(int(self._start[feature]), int(self._start[feature + 1]))
            x[row, self._token[entries]] = self._value[entries]
        return x


def choose_features(differences: Float[Tensor, "feature task"], k: int) -> Int[Tensor, "k task"]:
    """Returns the features with the largest absolute differences of means, the largest first."""
    # along the last dimension, because topk is slow along others
    return differences.T.abs().contiguous().topk(min(k, len(differences)), dim=1).indices.T


@dataclass(frozen=True)
class Probe:
    """A logistic regression. The label is predicted where x @ weight + bias > 0."""

    weight: Float64[Tensor, " k"]
    bias: float

    def __call__(self, x: Float[Tensor, "token k"]) -> Bool[Tensor, " token"]:
        """Returns the predictions."""
        return x @ self.weight.to(x) + self.bias > 0


def fit_probe(
    x: Float[Tensor, "token k"], label: Bool[Tensor, " token"], start: Probe | None = None
) -> Probe:
    """Returns the logistic regression with the least loss, found by Newton's method.

    The search begins at `start`, a probe of the first columns of `x`.

    Tokens with the label have the same total weight as tokens without it. Coefficients of features that are scaled to
    a root mean square of 1 have an L2 penalty of `PENALTY`.
    """
    scale = x.double().square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    # tokens on which all features are 0 count as two rows, one per label: few features fire on most tokens
    fires = (x != 0).any(1)
    rows = torch.cat([x[fires].double() / scale, x.new_zeros(2, x.shape[1]).double()])
    rows = F.pad(rows, (0, 1), value=1.0)
    target = torch.cat([label[fires].double(), torch.tensor([1.0, 0.0], dtype=torch.float64)])
    positives = int(label.sum())
    silent = positives - int(label[fires].sum())
    share = torch.where(target > 0, 0.5 / positives, 0.5 / (len(label) - positives))
    share[-2] *= silent
    share[-1] *= len(label) - len(target) + 2 - silent
    penalty = torch.full((rows.shape[1],), PENALTY, dtype=torch.float64)
    penalty[-1] = 0.0

    def loss(w: Tensor) -> float:
        score = rows @ w
        return float((share * (F.softplus(score) - target * score)).sum() + 0.5 * (penalty * w * w).sum())

    w = torch.zeros(rows.shape[1], dtype=torch.float64)
    if start is not None:
        w[: len(start.weight)], w[-1] = start.weight * scale[: len(start.weight)], start.bias
    current = loss(w)
    for _ in range(NEWTON_STEPS):
        p = (rows @ w).sigmoid()
        gradient = rows.T @ (share * (p - target)) + penalty * w
        curvature = (rows.T * (share * p * (1 - p))) @ rows + torch.diag(penalty + 1e-12)
        step = torch.linalg.solve(curvature, gradient)
        # a full step may overshoot where the labels are nearly separable
        size = 1.0
        while (new := loss(w - size * step)) > current and size > 1e-4:
            size /= 2
        if new > current:
            break
        w, decrease, current = w - size * step, current - new, new
        if decrease < 1e-8:
            break
    return Probe(w[:-1] / scale, float(w[-1]))


def fit_dense_probes(
    x: Float[Tensor, "token d"], label: Bool[Tensor, "token task"]
) -> tuple[Float[Tensor, "d task"], Float[Tensor, " task"]]:
    """Returns (weight, bias) of one probe per task that reads all dimensions, found by L-BFGS.

    Loss, weights of tokens and penalty are those of `fit_probe`, with dimensions that are centred and scaled to a
    standard deviation of 1. All tasks are minimized together.
    """
    mean, deviation = x.mean(0), x.std(0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    rows = F.pad((x - mean) / deviation, (0, 1), value=1.0)
    target = label.to(x)
    share = target * (0.5 / target.sum(0)) + (1 - target) * (0.5 / (1 - target).sum(0))
    w = torch.zeros(rows.shape[1], target.shape[1], dtype=x.dtype, device=x.device)

    def closure() -> Tensor:
        score = rows @ w
        w.grad = rows.T @ (share * (score.sigmoid() - target)) + PENALTY * w
        w.grad[-1] -= PENALTY * w[-1]
        value = (share * (F.softplus(score) - target * score)).sum()
        return value + 0.5 * PENALTY * w[:-1].square().sum()

    optimizer = torch.optim.LBFGS(
        [w], max_iter=DENSE_STEPS, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimizer.step(closure)  # type: ignore[arg-type]
    weight = w[:-1] / deviation[:, None]
    return weight, w[-1] - mean @ weight


@dataclass(frozen=True)
class Score:
    """A score of the testing half."""

    value: float
    influence: Float64[Tensor, " document"]
    """What each document adds to the score's deviation from its expectation, to first order. The sum is 0."""

    @staticmethod
    def mean(scores: Sequence["Score"]) -> "Score":
        """Returns the mean of scores of the same documents."""
        value = sum(score.value for score in scores) / len(scores)
        return Score(value, torch.stack([score.influence for score in scores]).mean(0))


def ratio_score(numerator: Float[Tensor, " document"], denominator: Float[Tensor, " document"]) -> Score:
    """Returns sum(numerator) / sum(denominator), which must not be 0, over documents."""
    total = float(denominator.sum())
    value = float(numerator.sum()) / total
    return Score(value, (numerator.double() - value * denominator.double()) / total)


class LabelCounts:
    """Numbers of tokens with and without a label in each document, for balanced accuracies."""

    def __init__(
        self, label: Bool[Tensor, " token"], document: Int[Tensor, " token"], documents: int
    ) -> None:
        """`document` is numbered from 0 to `documents` - 1."""
        self._label, self._document, self._documents = label, document, documents
        self._having = self._count(label)
        self._lacking = self._count(~label)

    def _count(self, tokens: Bool[Tensor, " token"]) -> Float64[Tensor, " document"]:
        return torch.bincount(self._document[tokens], minlength=self._documents).double()

    def balanced_accuracy(self, predicted: Bool[Tensor, " token"]) -> Score:
        """Returns (recall of the label + recall of its absence) / 2."""
        found = self._count(predicted & self._label)
        rejected = self._lacking - self._count(predicted & ~self._label)
        return Score.mean([ratio_score(found, self._having), ratio_score(rejected, self._lacking)])


def interval(score: Score, low: float = 0.0, high: float = 1.0) -> tuple[float | None, float | None]:
    """Returns the 95 % interval of a score over documents that were drawn independently, within [low, high].

    Returns (None, None) if fewer than 2 documents count, or if the
    influences are all 0: then the text has no document that would change the score.
    """
    counting = score.influence[score.influence != 0]
    if len(counting) < 2:
        return None, None
    half = half_interval(score.influence.cpu().numpy(), len(score.influence))
    return max(low, score.value - half), min(high, score.value + half)


def sparse_probe_scores(inputs: ProbeInputs, tasks: ProbeTasks, ks: Sequence[int]) -> dict[int, list[Score]]:
    """Returns the scores of the probes that read k features, for each k in ascending order, in the order of the
    tasks."""
    chosen = choose_features(inputs.mean_differences(), max(ks))
    testing = (~tasks.training).nonzero()[:, 0]
    scores: dict[int, list[Score]] = {k: [] for k in sorted(ks)}
    for task, (rows, counts) in enumerate(zip(tasks.training_rows, tasks.testing_counts, strict=True)):
        x, label = inputs.select(chosen[:, task].tolist()), tasks.label[rows, task]
        x_training, x_testing, probe = x[:, rows], x[:, testing], None
        for k, own in scores.items():
            probe = fit_probe(x_training[:k].T, label, probe)
            own.append(counts.balanced_accuracy(probe(x_testing[:k].T)))
    return scores


def dense_probe_scores(x: Float[Tensor, "token d"], tasks: ProbeTasks) -> list[Score]:
    """Returns the scores of probes that read all dimensions of `x`, in the order of the tasks."""
    weight, bias = fit_dense_probes(x[tasks.training], tasks.label[tasks.training])
    predicted = x[~tasks.training] @ weight + bias > 0
    return [
        counts.balanced_accuracy(own) for counts, own in zip(tasks.testing_counts, predicted.T, strict=True)
    ]
