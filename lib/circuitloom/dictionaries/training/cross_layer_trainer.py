"""Trains a cross-layer transcoder: all layers in each step."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

from ...activations.statistics import Moments
from ...config.dictionaries import Run
from ..cross_layer import CrossLayerTranscoder
from .collectives import SINGLE_PROCESS, Collectives
from .cross_layer_objective import DecoderGradient, compute_cross_layer_loss
from .cross_layer_parameters import initial_cross_layer_parameters, output_counts, to_transcoder
from .objective import LossTerms
from .parameters import Scales
from .selection import MapLayers
from .trainer import (
    DIVERGED_FVU,
    RunTrainer,
    async_bool,
    dead_features,
    divergence,
    gather_features,
    learning_rate,
    moved_threshold,
    refuse_different_replicas,
    refuse_infinite_weights,
    sparsity_weight,
)

CACHED_ENTRIES = 2**22
"""Number of weights of a decoder that take the optimizer's step together. Their gradient has 16 MB."""
MAX_THREADED_WEIGHTS = 2**22
"""Maximum number of weights of an encoder with which entries are selected in several layers at a time.

Copies of larger encoders exceed glibc's per-thread arenas. Each allocation then needs new memory pages.
"""


def batch_key(site: str, layer: int) -> str:
    """Returns the key of a layer's rows in a batch with several layers."""
    return f"{site}/{layer}"


class CrossLayerTrainer(RunTrainer):
    """Trains one cross-layer transcoder, one batch per `train_on`."""

    _pool: ThreadPoolExecutor | None = None

    def __init__(
        self,
        run: Run,
        layers: Sequence[int],
        moments: Mapping[str, Moments],
        sample: Mapping[str, Float[Tensor, "token d"]],
        collectives: Collectives = SINGLE_PROCESS,
        device: torch.device | None = None,
    ) -> None:
        """Initialise the parameters of `layers`, which are in ascending order.

        `moments` and `sample` map the `batch_key` of the run's sites to moments and to a sample of raw activations, of
        the same tokens at all sites. The default device is that of the sample.
        """
        self.run, self.layers, self.collectives = run, list(layers), collectives
        self.title = "all layers"
        self.steps = max(1, run.tokens // run.batch)
        keys = [(batch_key(run.site_in, layer), batch_key(run.site_out, layer)) for layer in layers]
        self.device = device or sample[keys[0][0]].device
        self.scales = [
            Scales(moments[x].scale, moments[y].scale, moments[y].variance, moments[y].mean) for x, y in keys
        ]
        self.parameters = initial_cross_layer_parameters(
            run,
            [sample[x] for x, _ in keys],
            [sample[y] for _, y in keys],
            [moments[x].mean for x, _ in keys],
            self.scales,
            output_counts(run, layers),
            collectives.feature_slice(run.width),
            self.device,
        )
        for p in self.parameters:
            collectives.broadcast_parameters(p)
        self.optimizer = torch.optim.Adam(self.weights(), lr=run.learning_rate, fused=True)
        self.tokens_since_fired = [
            torch.zeros(len(p.W_enc), dtype=torch.int64, device=self.device) for p in self.parameters
        ]
        self.thresholds = [0.0] * len(layers)

    def train_on(self, index: int, batch: Mapping[str, Tensor]) -> list[LossTerms]:
        """Take optimizer step `index` (from 0) on a raw batch, which has rows by `batch_key`.

        Returns the loss terms of each layer. Raises ArithmeticError if the loss is not finite or has diverged.
        """
        began = time.perf_counter()
        run, collectives = self.run, self.collectives

        # normalise the batch
        xs = [batch[batch_key(run.site_in, i)] / s.x for i, s in zip(self.layers, self.scales, strict=True)]
        ys = [batch[batch_key(run.site_out, i)] / s.y for i, s in zip(self.layers, self.scales, strict=True)]

        # loss and gradients
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, index, self.steps)
        self.optimizer.zero_grad()
        # other processes' gradients are summed as tensors, and a GPU's kernels compute complete gradients
        by_rows = collectives.world_size == 1 and not xs[0].is_cuda
        decoder_gradients: dict[int, DecoderGradient] = {}
        terms = compute_cross_layer_loss(
            self.parameters,
            run,
            xs,
            ys,
            [scale.normalised_variance for scale in self.scales],
            sparsity_weight(run, index, self.steps),
            [dead_features(run, index, silent) for silent in self.tokens_since_fired],
            collectives=collectives,
            decoder_gradients=decoder_gradients if by_rows else None,
            map_layers=self._map_layers() if by_rows else map,
        )
        torch.stack([each.loss for each in terms]).sum().backward()
        if collectives.world_size > 1:
            for p in self.parameters:
                collectives.all_reduce_gradients(p)
            terms = [each.all_reduce(collectives) for each in terms]

        # Adam, unless the loss has diverged
        # NaN in x may activate no feature, which leaves the loss finite
        sane = torch.stack(
            [
                (each.fvu < DIVERGED_FVU) & each.loss.isfinite() & x.sum().isfinite()
                for each, x in zip(terms, xs, strict=True)
            ]
        ).all()
        on_gpu = xs[0].is_cuda
        if on_gpu:
            # fused Adam skips its update if found_inf is 1; torch's gradient scaler relies on this too
            self.optimizer.found_inf = (~sane).float()  # type: ignore[attr-defined]
        read_is_sane = async_bool(sane)
        if not on_gpu and not read_is_sane():
            raise self._divergence(terms, index, xs, ys)
        for i, gradient in decoder_gradients.items():
            self._step_decoder(self.parameters[i].W_dec, gradient)
        self.optimizer.step()
        # checked only now, so that the GPU does not wait for the CPU
        if on_gpu and not read_is_sane():
            raise self._divergence(terms, index, xs, ys)
        for p in self.parameters:
            if p.threshold is not None:
                p.threshold.data.clamp_min_(0)

        # dead features, batchtopk's thresholds
        self._update_statistics(terms, collectives.global_tokens(len(xs[0])))
        self._seconds += time.perf_counter() - began
        self._timed_steps += 1
        return terms

    def _map_layers(self) -> MapLayers:
        """Returns a function like `map` that divides torch's threads among several layers.

        Searching and indexing are single-threaded, so that two layers with one thread each take less time than one
        after another with two threads.
        """
        threads = torch.get_num_threads()
        if threads == 1 or self.parameters[0].W_enc.numel() > MAX_THREADED_WEIGHTS:
            return map
        if self._pool is None:
            workers = min(threads, len(self.layers))
            # each thread has its own setting of torch's number of threads
            self._pool = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
            )
        return self._pool.map

    @torch.no_grad()
    def _step_decoder(self, W_dec: Tensor, gradient: DecoderGradient) -> None:
        """Take the optimizer's step of a decoder, for some features at a time. No gradient of all of them exists.

        The result is that of `optimizer.step`, to the bit.
        """
        [group] = self.optimizer.param_groups
        state = self.optimizer.state[W_dec]
        if not state:
            # as torch's fused Adam starts
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(W_dec), torch.zeros_like(W_dec)
        for rows, part in gradient.by_rows(max(1, CACHED_ENTRIES // W_dec.shape[1])):
            if W_dec.grad is not None:
                part.add_(W_dec.grad[rows])
            adam(
                [W_dec[rows]],
                [part],
                [state["exp_avg"][rows]],
                [state["exp_avg_sq"][rows]],
                [],
                [state["step"].clone()],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        state["step"] += 1
        # the optimizer leaves out weights without a gradient
        W_dec.grad = None

    def history_rows(self, index: int, terms: list[LossTerms]) -> list[dict[str, Any]]:
        """Returns one HISTORY row per layer. `tokens_per_second` is that of the step of all layers."""
        rate = self.tokens_per_second()
        return [
            self.history_row(layer, index, each, self._dead_share(silent), rate)
            for layer, each, silent in zip(self.layers, terms, self.tokens_since_fired, strict=True)
        ]

    def weights(self) -> list[Tensor]:
        """Returns all trainable tensors, layer by layer."""
        return [tensor for p in self.parameters for tensor in p.tensors()]

    def check(self) -> None:
        """Raise ArithmeticError if a weight is not finite, or if copies of it differ between processes."""
        for layer, p in zip(self.layers, self.parameters, strict=True):
            refuse_different_replicas(self.run, layer, p, self.collectives)
            refuse_infinite_weights(self.run, layer, p.tensors(), self.collectives)

    def transcoder(self) -> CrossLayerTranscoder:
        """Returns the transcoder trained so far, converted to raw activations.

        With tensor parallelism, rank 0 gets all features. Other ranks get only their own features.
        """
        own = to_transcoder(self.parameters, self.run, self.layers, self.scales, self.thresholds)
        if not self.collectives.is_tensor_parallel:
            return own
        return CrossLayerTranscoder(gather_features(each, self.collectives) for each in own.layers.values())

    def state(self) -> dict[str, Any]:
        """Returns everything that the next step depends on, except the batch."""
        return {
            "parameters": [{name: value.detach() for name, value in p.named()} for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "tokens_since_fired": self.tokens_since_fired,
            "thresholds": self.thresholds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a result of the method `state`."""
        for p, saved in zip(self.parameters, state["parameters"], strict=True):
            for name, value in p.named():
                value.data.copy_(saved[name])
        self.optimizer.load_state_dict(state["optimizer"])
        for silent, saved in zip(self.tokens_since_fired, state["tokens_since_fired"], strict=True):
            silent.copy_(saved)
        self.thresholds = list(state["thresholds"])

    def _dead_share(self, silent: Tensor) -> float:
        dead = int((silent >= self.run.dead_tokens).sum())
        return self.collectives.sum_feature_counts(dead) / self.run.width

    def _update_statistics(self, terms: list[LossTerms], tokens: int) -> None:
        smallest = [each.min_active for each in terms]
        if self.run.budget == "all":
            # one threshold for all layers, because the largest scores were chosen from all of them
            smallest = [torch.stack(smallest).min()] * len(smallest)
        for i, each in enumerate(terms):
            self.tokens_since_fired[i] += tokens
            self.tokens_since_fired[i][each.fired] = 0
            self.thresholds[i] = moved_threshold(self.run, self.thresholds[i], smallest[i])

    def _divergence(
        self, terms: list[LossTerms], index: int, xs: list[Tensor], ys: list[Tensor]
    ) -> ArithmeticError:
        """Returns the error of the layer whose values are not finite or whose loss is the largest."""
        finite = [bool(x.isfinite().all() and y.isfinite().all()) for x, y in zip(xs, ys, strict=True)]
        losses = torch.stack([each.loss.detach() for each in terms]).nan_to_num(torch.inf)
        i = int(losses.argmax()) if all(finite) else finite.index(False)
        values = {self.run.site_in: xs[i], self.run.site_out: ys[i]}
        return divergence(self.run, self.layers[i], terms[i].loss, index, values)
