"""Muon for the matrices of the blocks, AdamW for embeddings, norms and biases, one schedule for both."""

from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon

from ..config.language_model import Pretrain


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """The learning rate of `step` (from 0) of `steps`, as a share of its peak.

    It rises over the first share `warmup` of the steps and falls linearly to zero over the last share `decay`.
    """
    rise = (step + 1) / max(1.0, warmup * steps)
    fall = (steps - step) / max(1.0, decay * steps)
    return min(1.0, rise, fall)


class Optimiser:
    """Steps a `GPT2LMHeadModel`.

    Muon orthogonalises the query, key and value maps each by itself, and sees every matrix as [out, in], which is
    what its learning rate is scaled by; GPT-2 stores them as [in, out], the three side by side.
    """

    def __init__(self, model: nn.Module, config: Pretrain) -> None:
        blocks = {name: p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2}
        rest = [p for name, p in model.named_parameters() if name not in blocks]
        self._model = model
        self._sources = [(p, columns) for name, p in blocks.items() for columns in _parts(name, p)]
        self._views = [nn.Parameter(p.data[:, columns].T) for p, columns in self._sources]
        self._muon = Muon(self._views, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._adam = AdamW(
            rest, lr=config.learning_rate_embedding, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._peaks = {self._muon: config.learning_rate, self._adam: config.learning_rate_embedding}

    def step(self, share: float) -> None:
        """One step along the model's gradients, at `share` of the peak learning rates; clears the gradients."""
        for view, (parameter, columns) in zip(self._views, self._sources, strict=True):
            assert parameter.grad is not None
            view.grad = parameter.grad[:, columns].T
        for optimiser, peak in self._peaks.items():
            optimiser.param_groups[0]["lr"] = peak * share
            optimiser.step()
        self._model.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs of the optimisers."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def _parts(name: str, parameter: Tensor) -> list[slice]:
    """The columns of a [in, out] matrix that are maps of their own."""
    count = 3 if name.endswith("c_attn.weight") else 1
    width = parameter.shape[1] // count
    return [slice(i * width, (i + 1) * width) for i in range(count)]
