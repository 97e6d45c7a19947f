"""Trains one dictionary. For topk on a GPU, most steps replay a CUDA graph of the forward and backward pass."""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...activations.statistics import Moments
from ...config.dictionaries import Run
from ..dictionary import Dictionary, Encoder
from ..kernels.fixed_k import uses_kernels
from .collectives import SINGLE_PROCESS, Collectives
from .objective import TOPK_ACTS, LossTerms, compute_loss
from .paper_loss import PaperCoordinates, remove_parallel_gradient, restore_unit_norm
from .parameters import PER_FEATURE, Parameters, Scales, initial_parameters, to_dictionary

D = TypeVar("D", bound=Encoder)

THRESHOLD_RATE = 0.01
"""Rate of the moving average that becomes batchtopk's threshold. The average is over `LossTerms.min_active`."""
DIVERGED_FVU = 1e3
"""Training has diverged if the fraction of variance unexplained (FVU) of a batch exceeds this number."""
WARM_UP = 3
"""Number of trial steps before a CUDA graph is captured. These steps compile kernels and fill the allocator's pools."""


class RunTrainer(ABC):
    """Trains one run, one batch per `train_on`. `state` and `restore` allow bit-exact resumption.

    `Trainer` trains a dictionary of one layer, `cross_layer_trainer.CrossLayerTrainer` those of all layers together.
    """

    run: Run
    title: str
    """What is trained, for messages, such as `layer 3`."""
    steps: int
    """Number of optimizer steps of the training."""
    collectives: Collectives
    device: torch.device
    _seconds = 0.0
    _timed_steps = 0

    @abstractmethod
    def train_on(self, index: int, batch: Mapping[str, Tensor]) -> Any:
        """Take optimizer step `index` (from 0) on this process's part of a raw batch. Returns the step's loss terms.

        Raises ArithmeticError if the loss is not finite or has diverged.
        """

    @abstractmethod
    def history_rows(self, index: int, terms: Any) -> list[dict[str, Any]]:
        """Returns the HISTORY rows after step `index`, one per layer. `terms` is from `train_on`."""

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """Returns all trainable tensors."""

    @abstractmethod
    def check(self) -> None:
        """Raise ArithmeticError if a weight is not finite, or if copies of it differ between processes."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Returns everything that the next step depends on, except the batch."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Load a result of the method `state`."""

    def tokens_per_second(self) -> float:
        """Returns the tokens per second of the steps since the previous call."""
        rate = self._timed_steps * self.run.batch / self._seconds
        self._seconds, self._timed_steps = 0.0, 0
        return rate

    def history_row(
        self, layer: int, index: int, terms: LossTerms, dead: float, tokens_per_second: float
    ) -> dict[str, Any]:
        """Returns the HISTORY row of one layer after step `index`. `dead` is the share of dead features."""
        names = ("loss", "reconstruction", "sparsity", "auxiliary", "l0", "fvu")
        return {
            "run": self.run.name,
            "layer": layer,
            "step": index + 1,
            **{name: getattr(terms, name).item() for name in names},
            "dead": dead,
            "learning_rate": learning_rate(self.run, index, self.steps),
            "tokens_per_second": tokens_per_second,
        }


class Trainer(RunTrainer):
    """Trains one dictionary, one batch per `step`."""

    def __init__(
        self,
        run: Run,
        layer: int,
        x_moments: Moments,
        y_moments: Moments,
        sample: tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]],
        paper: PaperCoordinates | None = None,
        collectives: Collectives = SINGLE_PROCESS,
        device: torch.device | None = None,
    ) -> None:
        """Initialise the parameters. `sample` is a pair (x, y) of raw activations. The default device is that of x."""
        self.run, self.layer, self.paper, self.collectives = run, layer, paper, collectives
        self.title = f"layer {layer}"
        features = collectives.feature_slice(run.width)
        self.steps = max(1, run.tokens // run.batch)
        x, y = sample
        device = self.device = device or x.device
        if paper is None:
            self.scales = Scales(x_moments.scale, y_moments.scale, y_moments.variance, y_moments.mean)
            self.parameters = initial_parameters(run, x, y, x_moments.mean, self.scales, features, device)
        else:
            self.scales = Scales(1.0, 1.0, y_moments.variance, y_moments.mean)
            self.parameters = paper.initial_parameters(run, x_moments.mean, self.scales, device, features)
        collectives.broadcast_parameters(self.parameters)
        self.optimizer = torch.optim.Adam(self.parameters.tensors(), lr=run.learning_rate, fused=True)
        self.tokens_since_fired = torch.zeros(len(self.parameters.W_enc), dtype=torch.int64, device=device)
        self.threshold = 0.0
        self._captured: _CapturedStep | None = None

    def train_on(self, index: int, batch: Mapping[str, Tensor]) -> LossTerms:
        """Take optimizer step `index` on the rows of the run's two sites in `batch`, as `step` does."""
        return self.step(index, batch[self.run.site_in], batch[self.run.site_out])

    def step(self, index: int, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> LossTerms:
        """Take optimizer step `index` (from 0). x and y are this process's part of a raw batch.

        Returns the loss terms of the global batch. Raises ArithmeticError if the loss is not finite or has diverged. In
        this case, the parameters do not change.
        """
        began = time.perf_counter()
        p, run, collectives = self.parameters, self.run, self.collectives

        # normalise the batch
        if self.paper is None:
            x, y = x / self.scales.x, y / self.scales.y
        else:
            x, y = self.paper.normalise_input(x), self.paper.centre_output(y)

        # loss and gradients
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, index, self.steps)
        variance, dead = self.scales.normalised_variance, dead_features(run, index, self.tokens_since_fired)
        # a captured graph cannot wait for other processes
        if len(dead) == 0 and uses_kernels(run, x) and not collectives.is_tensor_parallel:
            if self._captured is None or not self._captured.fits(x, y):
                self._captured = _CapturedStep(
                    lambda x, y: compute_loss(p, run, x, y, variance, 0.0, dead, collectives=collectives),
                    [tensor for _, tensor in p.named()],
                    x,
                    y,
                )
            terms = self._captured(x, y)
        else:
            self.optimizer.zero_grad()
            weight = sparsity_weight(run, index, self.steps)
            terms = compute_loss(p, run, x, y, variance, weight, dead, collectives=collectives)
            terms.loss.backward()
        if collectives.world_size > 1:
            collectives.all_reduce_gradients(p)
            terms = terms.all_reduce(collectives)

        # Adam, unless the loss has diverged
        # NaN in x may activate no feature, which leaves the loss finite
        is_sane = (terms.fvu < DIVERGED_FVU) & terms.loss.isfinite() & x.sum().isfinite()
        if x.is_cuda:
            # fused Adam skips its update if found_inf is 1; torch's gradient scaler relies on this too
            self.optimizer.found_inf = (~is_sane).float()  # type: ignore[attr-defined]
        read_is_sane = async_bool(is_sane)
        if not x.is_cuda:
            self._raise_if_diverged(read_is_sane(), terms, index, x, y)
        if self.paper is not None:
            remove_parallel_gradient(p)
        self.optimizer.step()
        # checked only now, so that the GPU does not wait for the CPU
        if x.is_cuda:
            self._raise_if_diverged(read_is_sane(), terms, index, x, y)
        self._apply_constraints()

        # dead features, batchtopk's threshold
        self._update_statistics(terms, collectives.global_tokens(len(x)))
        self._seconds += time.perf_counter() - began
        self._timed_steps += 1
        return terms

    def history_rows(self, index: int, terms: LossTerms) -> list[dict[str, Any]]:
        """Returns one HISTORY row. `tokens_per_second` covers the steps since the previous row."""
        return [self.history_row(self.layer, index, terms, self.dead_share, self.tokens_per_second())]

    def weights(self) -> list[Tensor]:
        """Returns all trainable tensors."""
        return self.parameters.tensors()

    @property
    def dead_share(self) -> float:
        """Fraction of features that have not fired during the last `dead_tokens` tokens."""
        dead = int((self.tokens_since_fired >= self.run.dead_tokens).sum())
        return self.collectives.sum_feature_counts(dead) / self.run.width

    def check(self) -> None:
        """Raise ArithmeticError if a parameter is not finite, or if copies of a parameter differ between processes."""
        refuse_different_replicas(self.run, self.layer, self.parameters, self.collectives)
        refuse_infinite_weights(self.run, self.layer, self.parameters.tensors(), self.collectives)

    def dictionary(self) -> Dictionary:
        """Returns the dictionary trained so far, converted to raw activations.

        With tensor parallelism, rank 0 gets all features. Other ranks get only their own features.
        """
        p, run = self.parameters, self.run
        if self.paper is not None:
            dictionary = self.paper.to_dictionary(p, run, self.layer, self.scales.y_mean)
        else:
            dictionary = to_dictionary(p, run, self.layer, self.scales, self.threshold)
        if not self.collectives.is_tensor_parallel:
            return dictionary
        return gather_features(dictionary, self.collectives)

    def state(self) -> dict[str, Any]:
        """Returns everything that the next step depends on, except the batch."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.named()},
            "optimizer": self.optimizer.state_dict(),
            "tokens_since_fired": self.tokens_since_fired,
            "threshold": self.threshold,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a result of the method `state`."""
        for name, value in self.parameters.named():
            value.data.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        self.threshold = state["threshold"]

    def _apply_constraints(self) -> None:
        """Scale decoder rows to unit norm (`loss: paper`). Set negative thresholds to 0 (jumprelu)."""
        if self.paper is not None:
            restore_unit_norm(self.parameters)
        if self.parameters.threshold is not None:
            self.parameters.threshold.data.clamp_min_(0)

    def _update_statistics(self, terms: LossTerms, tokens: int) -> None:
        """Update `tokens_since_fired` and batchtopk's threshold."""
        self.tokens_since_fired += tokens
        self.tokens_since_fired[terms.fired] = 0
        self.threshold = moved_threshold(self.run, self.threshold, terms.min_active)

    def _raise_if_diverged(self, is_sane: bool, terms: LossTerms, index: int, x: Tensor, y: Tensor) -> None:
        if not is_sane:
            values = {self.run.site_in: x, self.run.site_out: y}
            raise divergence(self.run, self.layer, terms.loss, index, values)


def dead_features(run: Run, index: int, tokens_since_fired: Int[Tensor, " feature"]) -> Int[Tensor, " dead"]:
    """Returns the indices of the features that are dead at step `index`. Empty if no term of the loss revives them."""
    revives = run.pre_activation > 0 or (run.aux != 0 and run.act in TOPK_ACTS)
    # no search before a feature can be dead, because the search makes the CPU wait for the GPU
    if not revives or index * run.batch < run.dead_tokens:
        return torch.zeros(0, dtype=torch.int64, device=tokens_since_fired.device)
    return (tokens_since_fired >= run.dead_tokens).nonzero()[:, 0]


def moved_threshold(run: Run, old: float, min_active: Float[Tensor, ""]) -> float:
    """Returns batchtopk's threshold after a batch whose smallest positive z |W_dec[i]| is `min_active`."""
    if run.act != "batchtopk" or not bool(min_active.isfinite()):
        return old
    new = float(min_active)
    return new if old == 0.0 else (1 - THRESHOLD_RATE) * old + THRESHOLD_RATE * new


def divergence(
    run: Run, layer: int, loss: Float[Tensor, ""], index: int, values: Mapping[str, Tensor]
) -> ArithmeticError:
    """Returns the error of a diverged step. `values` has the batch's rows at the run's sites."""
    where = f"run {run.name}, layer {layer}"
    for site, rows in values.items():
        if not rows.isfinite().all():
            return ArithmeticError(
                f"{where}: {site} is not finite at step {index}; set language_model.dtype to float32, or add the site "
                "to activations.sites, which checks it"
            )
    return ArithmeticError(
        f"{where}: the loss is {loss.item():.3g} at step {index}; lower its learning_rate ({run.learning_rate:g}); "
        "the last good checkpoint is kept"
    )


def refuse_different_replicas(run: Run, layer: int, p: Parameters, collectives: Collectives) -> None:
    """Raise ArithmeticError if copies of a parameter differ between processes."""
    if not collectives.replicas_are_equal(p):
        raise ArithmeticError(
            f"run {run.name}, layer {layer}: replicated weights differ between processes; run again on processors of "
            "one kind: the last good checkpoint is kept"
        )


def gather_features(dictionary: D, collectives: Collectives) -> D:
    """Returns a dictionary with the features of all processes on rank 0. Other ranks get their own features."""
    tensors = {name: value for name, value in vars(dictionary).items() if isinstance(value, Tensor)}
    gathered = {
        name: collectives.gather_features(value) if name in PER_FEATURE else value.cpu()
        for name, value in tensors.items()
    }
    return dataclasses.replace(dictionary, **gathered)  # type: ignore[type-var]


def refuse_infinite_weights(run: Run, layer: int, weights: list[Tensor], collectives: Collectives) -> None:
    """Raise ArithmeticError unless all weights are finite in all processes."""
    finite = torch.stack([value.isfinite().all() for value in weights])
    if collectives.any(~finite.all()):
        raise ArithmeticError(
            f"run {run.name}, layer {layer}: a weight is not finite; lower its learning_rate "
            f"({run.learning_rate:g}); the last good checkpoint is kept"
        )


def learning_rate(run: Run, index: int, steps: int) -> float:
    """Returns Adam's learning rate at step `index` (from 0).

    The rate rises linearly over the first `run.warmup` * `steps` steps. The rate falls linearly over the last
    `run.decay` * `steps` steps. The rate at the last step is positive.
    """
    warmup, decay = run.warmup * steps, run.decay * steps
    rise = min(1.0, (index + 1) / warmup) if warmup > 1 else 1.0
    fall = min(1.0, (steps - index) / decay) if decay > 1 else 1.0
    return run.learning_rate * min(rise, fall)


def sparsity_weight(run: Run, index: int, steps: int) -> float:
    """Returns the sparsity weight λ at step `index` (from 0).

    λ rises linearly over the first `run.sparsity_warmup` * `steps` steps and is then constant.
    """
    rise = run.sparsity_warmup * steps
    return run.sparsity * (min(1.0, (index + 1) / rise) if rise > 1 else 1.0)


def async_bool(value: Bool[Tensor, ""]) -> Callable[[], bool]:
    """Start copying `value` to the CPU. Returns a function that waits for the copy and returns `value`."""
    if not value.is_cuda:
        return lambda: bool(value)
    copy = value.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> bool:
        copied.synchronize()
        return bool(copy)

    return read


class _CapturedStep:
    """CUDA graph that computes the loss and gradients of a step, for batches of one shape.

    Without a graph, launching hundreds of small kernels takes longer than running the kernels.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor, Tensor], LossTerms],
        parameters: list[Tensor],
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
    ) -> None:
        """Capture `evaluate` and its backward pass. `evaluate` must not make the CPU wait for the GPU."""
        self.parameters, self.x, self.y = parameters, x.clone(), y.clone()

        def forward_backward() -> LossTerms:
            for parameter in parameters:
                parameter.grad = None
            terms = evaluate(self.x, self.y)
            terms.loss.backward()
            return terms

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                forward_backward()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # thread_local, because another thread reads batches ahead
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.terms = forward_backward()
        self.gradients = [parameter.grad for parameter in parameters]

    def fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether x and y have the shapes of the captured batch."""
        return x.shape == self.x.shape and y.shape == self.y.shape

    def __call__(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> LossTerms:
        """Set the gradients of the parameters. Returns the loss terms of the batch.

        The next call overwrites the gradients and the returned `fired`.
        """
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        values = {field.name: getattr(self.terms, field.name) for field in dataclasses.fields(LossTerms)}
        # all scalars are copied at once, because each copy is a kernel launch
        scalars = [name for name, value in values.items() if value.ndim == 0 and value.is_cuda]
        copies = torch.stack([values[name].detach().float() for name in scalars]).unbind()
        return LossTerms(**{**values, **dict(zip(scalars, copies, strict=True))})
