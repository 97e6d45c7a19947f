"""Trains a GPT-2 model on the corpus with Muon and AdamW, and saves it as a Hugging Face folder."""

import hashlib
import io
import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from ..config.language_model import Pretrain
from ..core.atomic_io import (
    fingerprint,
    partial_folder,
    remove_partial_folder,
    replace_folder,
    write_atomically,
)
from ..core.hardware import fast_dtype
from ..core.progress import progress
from ..core.tables import PRETRAINING, write_table
from ..corpus.tokens import Tokens
from . import kernels
from .anatomy import find_anatomy, write_anatomy
from .model_files import copy_files, text_files
from .muon import Muon

_BLOCK = 4096
"""Number of sequences read at a time."""
CHECKPOINT = "checkpoint.pt"
HISTORY_ROWS = 200
"""Maximum number of rows of the table `pretraining`."""
_DENSE_CONTEXT = 512
"""Largest context for which dense attention is used.

On CPUs, dense attention is faster than torch's only in bfloat16, and while attention patterns fit the processor's
caches.
"""


class Batches:
    """Training tokens in memory, divided into one batch per step.

    Each epoch uses every sequence once, in an order that depends only on the seed and the epoch. The target of a
    sequence's last position is the next sequence's first token (after the BOS). The last sequence of the split only
    provides this target.

    Raises ValueError if there are fewer than two sequences.
    """

    def __init__(self, tokens: Tokens, size: int, seed: int) -> None:
        if len(tokens) < 2:
            raise ValueError(
                f"{tokens.path}: too few training tokens to pretrain on; raise corpus.train_tokens"
            )
        self.size = size
        self.context = tokens.context
        self._token = np.empty(tokens.token.shape, tokens.token.dtype)
        for start in range(0, len(tokens), _BLOCK):
            rows = slice(start, start + _BLOCK)
            self._token[rows] = tokens.take(rows).numpy()
        self._first = 0 if tokens.bos_id is None else 1
        self._count = len(tokens) - 1
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(self._count)
        )

    def digest(self) -> str:
        """Returns a digest of the tokens."""
        return hashlib.blake2b(self._token.tobytes(), digest_size=16).hexdigest()

    def at(self, step: int) -> tuple[Int[Tensor, "sequence position"], Int[Tensor, "sequence position"]]:
        """Returns (tokens, next token of each token) for `step`, counted from 0."""
        places = np.arange(step * self.size, (step + 1) * self.size)
        rows = np.array(
            [self._order(epoch)[place] for epoch, place in zip(*divmod(places, self._count), strict=True)]
        )
        batch = np.empty((self.size, self.context + 1), np.int64)
        batch[:, :-1] = self._token[rows]
        batch[:, -1] = self._token[rows + 1, self._first]
        tokens = torch.from_numpy(batch)
        return tokens[:, :-1], tokens[:, 1:]


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """Returns the learning rate of `step` (from 0), as a fraction of the peak.

    The rate rises linearly in the first `warmup` * `steps` steps. The rate falls linearly in the last `decay` * `steps`
    steps. The last value is 1 / (`decay` * `steps`), not zero.
    """
    rise = (step + 1) / max(1.0, warmup * steps)
    fall = (steps - step) / max(1.0, decay * steps)
    return min(1.0, rise, fall)


class MuonAdamW:
    """Optimizer of a `GPT2LMHeadModel`: Muon for the matrices of the blocks, AdamW for all other parameters.

    Muon expects one [out, in] matrix per parameter. GPT-2 stores [in, out], with query, key and value in one parameter.
    Muon therefore gets transposed views of the separate matrices.
    """

    def __init__(self, model: nn.Module, config: Pretrain) -> None:
        blocks = {name: p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2}
        rest = [p for name, p in model.named_parameters() if name not in blocks]
        self._model = model
        self._sources = [(p, columns) for name, p in blocks.items() for columns in _matrix_columns(name, p)]
        views = [p.data[:, columns].T for p, columns in self._sources]
        self._muon = Muon(views, config.weight_decay, fast_dtype())
        self._adam = AdamW(
            rest, lr=config.learning_rate_embedding, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._config = config

    def step(self, share: float) -> None:
        """Take one step with `share` times the peak learning rates. Then clear the gradients."""
        gradients = []
        for parameter, columns in self._sources:
            assert parameter.grad is not None
            gradients.append(parameter.grad[:, columns].T)
        self._muon.step(gradients, self._config.learning_rate * share)
        self._adam.param_groups[0]["lr"] = self._config.learning_rate_embedding * share
        self._adam.step()
        self._model.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of both optimizers."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def _matrix_columns(name: str, parameter: Tensor) -> list[slice]:
    """Returns the columns of each matrix in an [in, out] parameter. `c_attn` contains query, key and value."""
    count = 3 if name.endswith("c_attn.weight") else 1
    width = parameter.shape[1] // count
    return [slice(i * width, (i + 1) * width) for i in range(count)]


@dataclass
class PretrainingState:
    """Model, optimizer and training history, as stored in a checkpoint."""

    model: GPT2LMHeadModel
    optimizer: MuonAdamW
    losses: list[float] = field(default_factory=list)
    """Cross-entropy of each step so far, in nats per token."""
    seconds: list[float] = field(default_factory=list)
    """Duration of each step so far, in seconds."""

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.losses)

    def save(self, file: Path) -> None:
        """Write this state atomically to the checkpoint `file`."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        # converted to bytes first, because torch.save does not report a full disk
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(file, content.getbuffer())

    def resume(self, file: Path) -> None:
        """Restore this state from the checkpoint `file`."""
        state = torch.load(file, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.seconds = state["losses"].tolist(), state["seconds"].tolist()


def pretrain(
    tokens: Tokens, tokenizer: Path, config: Pretrain, seed: int, output: Path, version: str = ""
) -> None:
    """Train a model on `tokens`. Write the model, the tokenizer, the anatomy and the table `pretraining` to `output`.

    A killed run resumes from `output`.partial if config, seed, tokens and `version` (a hash of the code) are the same.
    Resuming is bit-exact on a CPU with the same number of threads. Raises ValueError if there is too little text, and
    FloatingPointError if the loss diverges.
    """
    batches = Batches(tokens, config.batch, seed)
    keys = config.model_dump(mode="json", exclude={"checkpoint_every"})
    digest = fingerprint(
        config=keys, seed=seed, tokens=batches.digest(), context=tokens.context, vocabulary=tokens.vocabulary,
        bos_id=tokens.bos_id, version=version,
    )  # fmt: skip
    with partial_folder(output, digest) as partial:
        model = build(config, tokens, seed)
        training = PretrainingState(model, MuonAdamW(model, config))
        if (partial / CHECKPOINT).is_file():
            training.resume(partial / CHECKPOINT)
        train(training, batches, config, partial / CHECKPOINT)
        folder = partial / "model"
        copy_files(text_files(tokenizer), folder)
        logging.disable_progress_bar()
        model.save_pretrained(folder)
        write_anatomy(find_anatomy(model.config), folder)
        write_table(PRETRAINING, history(training, config, batches.context), folder / "pretraining.parquet")
        replace_folder(folder, output)
        remove_partial_folder(partial)


def build(config: Pretrain, tokens: Tokens, seed: int) -> GPT2LMHeadModel:
    """Returns the initialized model, on a GPU if one is available."""
    # exact GELU is used, because torch computes it five times as fast as the tanh approximation
    shape = GPT2Config(
        vocab_size=tokens.vocabulary, n_positions=tokens.context, n_embd=config.d_model, n_layer=config.layers,
        n_head=config.heads, n_inner=config.d_mlp, activation_function="gelu", tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokens.bos_id, eos_token_id=tokens.separator_id,
        architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    kernels.register_attention()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense = device == "cpu" and fast_dtype() == torch.bfloat16 and tokens.context <= _DENSE_CONTEXT
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel._from_config(
            shape, attn_implementation=kernels.DENSE_ATTENTION if dense else "sdpa"
        )
    return model.to(device).train()  # type: ignore[arg-type]


def train(training: PretrainingState, batches: Batches, config: Pretrain, checkpoint: Path) -> None:
    """Run the remaining steps. Write a checkpoint every `checkpoint_every` steps and after the last step.

    Raises FloatingPointError if the loss is more than 2 nats above the loss of a uniform guess.
    """
    step_tokens = batches.size * batches.context
    steps = math.ceil(config.tokens / step_tokens)
    guess = math.log(training.model.config.vocab_size)
    bar = progress(
        "language_model: pretrain", steps * step_tokens, "tokens", done=training.step * step_tokens
    )
    with bar:
        for step in range(training.step, steps):
            begin = time.perf_counter()
            loss = float(_backward(training.model, *batches.at(step)))
            if not loss < guess + 2:
                raise FloatingPointError(
                    f"language_model: the loss is {loss:.2f} at step {step} (guessing gives {guess:.2f}); "
                    "lower learning_rate or learning_rate_embedding, or raise warmup"
                )
            training.optimizer.step(schedule(step, steps, config.warmup, config.decay))
            training.losses.append(loss)
            training.seconds.append(time.perf_counter() - begin)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step_tokens)
            if training.step % config.checkpoint_every == 0 or training.step == steps:
                training.save(checkpoint)


def _backward(model: GPT2LMHeadModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """Accumulates the gradients of a batch in the model. Returns the mean loss."""
    fast = fast_dtype()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast == torch.bfloat16):
        hidden = model.transformer(tokens.to(model.device), use_cache=False).last_hidden_state
        target = targets.to(model.device).flatten()
        loss = kernels.next_token_loss(hidden.flatten(0, 1), model.lm_head.weight, target, fast)
    loss.backward()
    return loss.detach()


def history(training: PretrainingState, config: Pretrain, context: int) -> list[dict[str, Any]]:
    """Returns at most `HISTORY_ROWS` rows for table `pretraining`. Each row covers one or more steps."""
    steps, rows = training.step, []
    size = math.ceil(steps / HISTORY_ROWS)
    for start in range(0, steps, size):
        end = min(start + size, steps)
        seconds = sum(training.seconds[start:end])
        rows.append(
            {
                "step": end,
                "loss": sum(training.losses[start:end]) / (end - start),
                "learning_rate": config.learning_rate * schedule(end - 1, steps, config.warmup, config.decay),
                "tokens_per_second": (end - start) * config.batch * context / seconds,
            }
        )
    return rows
