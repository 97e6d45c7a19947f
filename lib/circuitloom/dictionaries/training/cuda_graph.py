"""A step's loss and gradients as one CUDA graph: a step of hundreds of small launches keeps a processor busy for longer
than the GPU."""

from collections.abc import Callable
from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from .objective import Terms

WARM_UP = 3
"""Runs before the capture, in which kernels are compiled and the allocator's pools filled."""


class CudaGraphStep:
    """Evaluates terms and leaves their gradients in the parameters' `grad`, for batches of one shape."""

    def __init__(
        self,
        evaluate: Callable[[Tensor, Tensor], Terms],
        parameters: list[Tensor],
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
    ) -> None:
        """`evaluate` must ask nothing of the GPU that the host would wait for."""
        self.parameters, self.x, self.y = parameters, x.clone(), y.clone()

        def work() -> Terms:
            for parameter in parameters:
                parameter.grad = None
            terms = evaluate(self.x, self.y)
            terms.loss.backward()
            return terms

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # of this thread alone: another reads batches ahead
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.terms = work()
        self.gradients = [parameter.grad for parameter in parameters]

    def fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether a batch has the shape that was captured."""
        return x.shape == self.x.shape and y.shape == self.y.shape

    def __call__(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> Terms:
        """The terms of a batch, theirs to keep but for `fired`; gradients are replaced by the next call."""
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        values = {field.name: getattr(self.terms, field.name) for field in fields(Terms)}
        # copied together: each copy alone is a launch
        scalars = [name for name, value in values.items() if value.ndim == 0 and value.is_cuda]
        together = torch.stack([values[name].detach().float() for name in scalars])
        return Terms(**{**values, **dict(zip(scalars, together.unbind(), strict=True))})
