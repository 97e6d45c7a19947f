"""Pretraining: a GPT-2-shaped model trained on the corpus, saved as an ordinary Hugging Face folder."""

import io
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from ..config.language_model import Pretrain
from ..corpus.tokens import Tokens
from ..hardware import fast_dtype
from ..partial import discard, fingerprint, move, partial_folder, replace
from ..progress import progress
from ..tables import PRETRAINING, write_table
from . import kernels
from .anatomy import find_anatomy, write_anatomy
from .batches import Batches
from .files import TEXT, copy_files
from .optimiser import Optimiser, schedule

CHECKPOINT = "checkpoint.pt"
ROWS = 200
"""Rows, at most, of the table of the loss."""
_DENSE_CONTEXT = 512
"""Up to this many positions the patterns fit the processor's caches, and dense attention is the faster."""


@dataclass
class Training:
    """A model while it is trained: what a checkpoint holds."""

    model: GPT2LMHeadModel
    optimiser: Optimiser
    losses: list[float] = field(default_factory=list)
    """Cross-entropy of each step so far, nats a token."""
    seconds: list[float] = field(default_factory=list)
    """Time that each took."""

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def save(self, file: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        # torch writing to a full disk does not say so
        content = io.BytesIO()
        torch.save(state, content)
        replace(file, content.getbuffer())

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(file, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses, self.seconds = state["losses"].tolist(), state["seconds"].tolist()


def pretrain(
    tokens: Tokens, tokenizer: Path, config: Pretrain, seed: int, output: Path, version: str = ""
) -> None:
    """Train a model on `tokens` and save it, its tokenizer, its anatomy and the table `pretraining` in `output`.

    A killed training goes on from `output`.partial, and gives the same weights (on a CPU, at equal threads), unless
    config, tokens or `version` (of the code) have changed since.
    Raises ValueError where there is too little text, and FloatingPointError where the loss diverges.
    """
    batches = Batches(tokens, config.batch, seed)
    keys = config.model_dump(mode="json", exclude={"checkpoint_every"})
    mark = fingerprint(
        config=keys, seed=seed, tokens=batches.digest(), context=tokens.context, vocabulary=tokens.vocabulary,
        bos_id=tokens.bos_id, version=version,
    )  # fmt: skip
    with partial_folder(output, mark) as partial:
        model = build(config, tokens, seed)
        training = Training(model, Optimiser(model, config))
        if (partial / CHECKPOINT).is_file():
            training.resume(partial / CHECKPOINT)
        train(training, batches, config, partial / CHECKPOINT)
        folder = partial / "model"
        copy_files(tokenizer, folder, TEXT)
        logging.disable_progress_bar()
        model.save_pretrained(folder)
        write_anatomy(find_anatomy(model.config), folder)
        write_table(PRETRAINING, history(training, config, batches.context), folder / "pretraining.parquet")
        move(folder, output)
        discard(partial)


def build(config: Pretrain, tokens: Tokens, seed: int) -> GPT2LMHeadModel:
    """The model before training, on a GPU where there is one.

    The MLP's GELU is the exact one: torch computes it five times as fast as its approximation by a tanh.
    """
    shape = GPT2Config(
        vocab_size=tokens.vocabulary, n_positions=tokens.context, n_embd=config.d_model, n_layer=config.layers,
        n_head=config.heads, n_inner=config.d_mlp, activation_function="gelu", tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokens.bos_id, eos_token_id=tokens.bos_id,
        architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    kernels.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense = device == "cpu" and tokens.context <= _DENSE_CONTEXT
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel._from_config(
            shape, attn_implementation=kernels.DENSE_ATTENTION if dense else "sdpa"
        )
    return model.to(device).train()  # type: ignore[arg-type]


def train(training: Training, batches: Batches, config: Pretrain, checkpoint: Path) -> None:
    """Take the steps that are left, with a checkpoint every so many of them and after the last.

    Raises FloatingPointError where the loss is worse than a guess among all tokens; the last checkpoint stays.
    """
    step_tokens = batches.size * batches.context
    steps = math.ceil(config.tokens / step_tokens)
    guess = math.log(training.model.config.vocab_size)
    bar = progress("language_model: pretrain", steps * step_tokens, "token", done=training.step * step_tokens)
    with bar:
        for step in range(training.step, steps):
            begin = time.perf_counter()
            loss = float(_backward(training.model, *batches.at(step)))
            if not loss < guess + 2:
                raise FloatingPointError(
                    f"language_model: the loss is {loss:.2f} at step {step} (guessing gives {guess:.2f}); "
                    "lower learning_rate or learning_rate_embedding, or raise warmup"
                )
            training.optimiser.step(schedule(step, steps, config.warmup, config.decay))
            training.losses.append(loss)
            training.seconds.append(time.perf_counter() - begin)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step_tokens)
            if training.step % config.checkpoint_every == 0 or training.step == steps:
                training.save(checkpoint)


def _backward(model: GPT2LMHeadModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean loss over a batch, its gradients left in the model."""
    fast = fast_dtype()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast == torch.bfloat16):
        hidden = model.transformer(tokens.to(model.device), use_cache=False).last_hidden_state
        target = targets.to(model.device).flatten()
        loss = kernels.next_token_loss(hidden.flatten(0, 1), model.lm_head.weight, target, fast)
    loss.backward()
    return loss.detach()


def history(training: Training, config: Pretrain, context: int) -> list[dict[str, Any]]:
    """Rows of the table `pretraining`: means over equal numbers of steps."""
    steps, rows = training.step, []
    size = math.ceil(steps / ROWS)
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
