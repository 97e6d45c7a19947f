"""One run in training: its parameters, optimiser and memory of which features have been silent. Training a sweep: all
runs of a layer in one process, over one read of its activations, resumable to the bit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...activations.statistics import Moments
from ...config.dictionaries import Run
from ..dictionary import Dictionary
from ..kernels.fixed_k import kernels_serve
from .collectives import ALONE, Collectives
from .cuda_graph import CudaGraphStep
from .objective import Terms, evaluate_terms
from .paper_loss import PaperCoordinates, drop_parallel_gradient, restore_unit_norm
from .parameters import PER_FEATURE, Scales, initial_parameters, to_dictionary

THRESHOLD_RATE = 0.01
"""Rate of batchtopk's running threshold."""
DIVERGED = 1e3
"""A reconstruction loss above so many times the variance has diverged."""


class Trainer:
    """A run of a sweep; `step` takes one batch, `state` and `restore` make its training resumable to the bit."""

    def __init__(
        self,
        run: Run,
        layer: int,
        source: Moments,
        target: Moments,
        sample: tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]],
        paper: PaperCoordinates | None = None,
        reduction: Collectives = ALONE,
        device: torch.device | None = None,
    ) -> None:
        """`sample` are some raw inputs and outputs, from which the features start; it trains on `device`, or theirs."""
        self.run, self.layer, self.paper, self.reduction = run, layer, paper, reduction
        features = reduction.features(run.width)
        self.steps = max(1, run.tokens // run.batch)
        x, y = sample
        device = device or x.device
        if paper is None:
            self.scales = Scales(source.scale, target.scale, target.variance, target.mean)
            self.parameters = initial_parameters(run, x, y, source.mean, self.scales, features, device)
        else:
            self.scales = Scales(1.0, 1.0, target.variance, target.mean)
            self.parameters = paper.initial(run, source.mean, self.scales, device, features)
        reduction.spread(self.parameters)
        self.optimizer = torch.optim.Adam(self.parameters.tensors(), lr=run.learning_rate, fused=True)
        self.silent = torch.zeros(len(self.parameters.W_enc), dtype=torch.int64, device=device)
        self.threshold = 0.0
        self._replay: CudaGraphStep | None = None

    def step(self, index: int, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> Terms:
        """Take optimiser step `index` (from 0) on a raw batch, or this process' share of it; terms of the whole.

        Raises ArithmeticError where the loss is not finite or has diverged; parameters are then as before the step.
        """
        if self.paper is not None:
            x, y = self.paper.read(x), self.paper.write(y)
        else:
            x, y = x / self.scales.x, y / self.scales.y
        p, run = self.parameters, self.run
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, index, self.steps)
        terms, sane = self._terms(index, x, y)
        if not x.is_cuda:
            self._refuse_unless(sane(), terms, index)
        if self.paper is not None:
            drop_parallel_gradient(p)
        self.optimizer.step()
        # a GPU has left the parameters alone by itself, and was not kept waiting
        if x.is_cuda:
            self._refuse_unless(sane(), terms, index)
        if self.paper is not None:
            restore_unit_norm(p)
        if p.threshold is not None:
            p.threshold.data.clamp_min_(0)
        self._remember(terms, self.reduction.tokens(len(x)))
        return terms

    def _terms(self, index: int, x: Tensor, y: Tensor) -> tuple[Terms, Callable[[], bool]]:
        """Terms on a normalised batch, their gradients in place; and whether they are sane."""
        p, run, reduction = self.parameters, self.run, self.reduction
        variance, dead = self.scales.normalised_variance, self._dead(index)
        # what is captured may not wait for other processes
        if len(dead) == 0 and kernels_serve(run, x) and not reduction.splits_features:
            if self._replay is None or not self._replay.fits(x, y):
                tensors = [tensor for _, tensor in p.named()]
                self._replay = CudaGraphStep(
                    lambda x, y: evaluate_terms(p, run, x, y, variance, 0.0, dead, reduction=reduction),
                    tensors,
                    x,
                    y,
                )
            terms = self._replay(x, y)
        else:
            self.optimizer.zero_grad()
            weight = sparsity_weight(run, index, self.steps)
            terms = evaluate_terms(p, run, x, y, variance, weight, dead, reduction=reduction)
            terms.loss.backward()
        if reduction.processes > 1:
            reduction.sum_gradients(p)
            terms = terms.reduced(reduction)
        sane = (terms.fvu < DIVERGED) & terms.loss.isfinite()
        if x.is_cuda:
            # the door that torch has for gradient scaling: fused Adam does nothing where this is 1
            self.optimizer.found_inf = (~sane).float()  # type: ignore[attr-defined]
        return terms, _asked(sane)

    def _refuse_unless(self, sane: bool, terms: Terms, index: int) -> None:
        if not sane:
            raise ArithmeticError(
                f"run {self.run.name}, layer {self.layer}: the loss is {terms.loss.item():.3g} at step {index}; lower "
                f"its learning_rate ({self.run.learning_rate:g}); the last good checkpoint is kept"
            )

    def _dead(self, index: int) -> Int[Tensor, " dead"]:
        """Features to revive; to find them is to wait for a GPU, which is not done where there can be none."""
        run = self.run
        if run.aux == 0 or run.act not in ("topk", "batchtopk") or index * run.batch < run.dead_tokens:
            return torch.zeros(0, dtype=torch.int64, device=self.silent.device)
        return (self.silent >= run.dead_tokens).nonzero()[:, 0]

    def _remember(self, terms: Terms, tokens: int) -> None:
        self.silent += tokens
        self.silent[terms.fired] = 0
        if self.run.act == "batchtopk" and bool(terms.smallest.isfinite()):
            smallest = float(terms.smallest)
            first = self.threshold == 0.0
            self.threshold = (
                smallest if first else (1 - THRESHOLD_RATE) * self.threshold + THRESHOLD_RATE * smallest
            )

    @property
    def dead_share(self) -> float:
        """Share of features silent for `dead_tokens`."""
        dead = int((self.silent >= self.run.dead_tokens).sum())
        return self.reduction.count_features(dead) / self.run.width

    def check(self) -> None:
        """Raise ArithmeticError where the last step left a parameter that is not finite, or processes apart."""
        if not self.reduction.same(self.parameters):
            raise ArithmeticError(
                f"run {self.run.name}, layer {self.layer}: weights that all processes share are not the same in all; "
                "run again on processors of one kind: the last good checkpoint is kept"
            )
        finite = torch.stack([value.isfinite().all() for value in self.parameters.tensors()])
        if self.reduction.any(~finite.all()):
            raise ArithmeticError(
                f"run {self.run.name}, layer {self.layer}: a weight is not finite any more; lower its "
                f"learning_rate ({self.run.learning_rate:g}); the last good checkpoint is kept"
            )

    def dictionary(self) -> Dictionary:
        """The dictionary as trained so far, on raw activations: all of it in the first process."""
        p, run = self.parameters, self.run
        if self.paper is not None:
            dictionary = self.paper.to_dictionary(p, run, self.layer, self.scales.y_mean)
        else:
            dictionary = to_dictionary(p, run, self.layer, self.scales, self.threshold)
        if not self.reduction.splits_features:
            return dictionary
        tensors = {name: value for name, value in vars(dictionary).items() if isinstance(value, Tensor)}
        whole = {
            name: self.reduction.join(value) if name in PER_FEATURE else value.cpu()
            for name, value in tensors.items()
        }
        return dataclasses.replace(dictionary, **whole)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.named()},
            "optimizer": self.optimizer.state_dict(),
            "silent": self.silent,
            "threshold": self.threshold,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Return to a `state`."""
        for name, value in self.parameters.named():
            value.data.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.silent.copy_(state["silent"])
        self.threshold = state["threshold"]


def _asked(value: Bool[Tensor, ""]) -> Callable[[], bool]:
    """Ask for a value; the answer, once called for, waits for what a GPU had to do until now, not for later work."""
    if not value.is_cuda:
        return lambda: bool(value)
    answer = value.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> bool:
        arrived.synchronize()
        return bool(answer)

    return wait


def learning_rate(run: Run, index: int, steps: int) -> float:
    """Adam's learning rate at step `index`: linear warm-up, constant, linear decay to zero over the last steps."""
    warmup, decay = run.warmup * steps, run.decay * steps
    rise = min(1.0, (index + 1) / warmup) if warmup > 1 else 1.0
    fall = min(1.0, (steps - index) / decay) if decay > 1 else 1.0
    return run.learning_rate * min(rise, fall)


def sparsity_weight(run: Run, index: int, steps: int) -> float:
    """λ at step `index`: it rises linearly over the first steps."""
    rise = run.sparsity_warmup * steps
    return run.sparsity * (min(1.0, (index + 1) / rise) if rise > 1 else 1.0)
