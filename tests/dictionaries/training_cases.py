"""Training cases that one process and two processes run, on the same data."""

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from circuitloom.activations.statistics import Moments
from circuitloom.config import Run
from circuitloom.dictionaries.dictionary import save_dictionary
from circuitloom.dictionaries.training.collectives import Collectives, DataParallel, TensorParallel
from circuitloom.dictionaries.training.paper_loss import PaperCoordinates
from circuitloom.dictionaries.training.parameters import PER_FEATURE
from circuitloom.dictionaries.training.sweep import train
from circuitloom.dictionaries.training.trainer import Trainer

D, BATCH, STEPS, WIDTH = 16, 128, 30, 64
CASES = {
    "relu": {"act": "relu", "sparsity": 0.02},
    # few features are active, so that sparse products are used from the first step
    "relu-sparse": {"act": "relu", "sparsity": 0.02, "learning_rate": 1e-3},
    "topk": {"act": "topk", "k": 4},
    "batchtopk": {"act": "batchtopk", "k": 4},
    "jumprelu": {"act": "jumprelu", "sparsity": 0.002},
    "tanh": {"act": "jumprelu", "sparsity": 0.002, "penalty": "tanh"},
    "skip": {"act": "topk", "k": 4, "skip": True},
    "bfloat16": {"act": "topk", "k": 4, "precision": "bfloat16"},
    "dense-bfloat16": {"act": "relu", "sparsity": 0.02, "precision": "bfloat16"},
    "dead": {"act": "topk", "k": 4, "dead_tokens": BATCH * 5},
    # under tensor parallelism one process has all dead features
    "dead-apart": {"act": "batchtopk", "k": 4, "dead_tokens": BATCH * 5},
    "sae": {"act": "topk", "k": 4, "kind": "sae"},
    "paper": {"act": "relu", "loss": "paper", "sparsity": 1e-3, "skip": True},
    "paper-sae": {"act": "relu", "loss": "paper", "sparsity": 1e-3, "kind": "sae"},
}
WEAK = {"dead": slice(8, None, 2), "dead-apart": slice(40, None)}
"""Features whose initial encoder rows are too small to be among the k largest."""
SPLITS = {"batch": DataParallel, "features": TensorParallel}


def make_data() -> dict[str, torch.Tensor]:
    """x and y are two linear mixtures of the same sparse causes."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(BATCH * 10, 40, generator=generator)
    causes = causes * (torch.rand(causes.shape, generator=generator) < 0.06)
    x, y = (causes @ torch.randn(40, D, generator=generator) for _ in range(2))
    return {"mlp_in": 2 * x + 0.5, "mlp_out": y - 0.2}


def moments(x: torch.Tensor) -> Moments:
    square = float(x.square().sum(1).mean())
    return Moments(x.mean(0), math.sqrt(square / x.shape[1]), square - float(x.mean(0).square().sum()))


def make_trainer(name: str, collectives: Collectives) -> Trainer:
    keys = {"width": WIDTH, "batch": BATCH, "tokens": BATCH * STEPS, "learning_rate": 1e-2, "name": name}
    # float32: some processors default to bfloat16, in which sums over half batches differ
    run, data = Run(**{**keys, "precision": "float32", **CASES[name]}), make_data()
    x, y = data[run.site_in], data[run.site_out]
    paper = PaperCoordinates(None, centred=run.kind != "sae") if run.loss == "paper" else None
    trainer = Trainer(run, 0, moments(x), moments(y), (x, y), paper, collectives)
    if name in WEAK:
        weak = torch.zeros(WIDTH, dtype=torch.bool)
        weak[WEAK[name]] = True
        trainer.parameters.W_enc.data[weak[collectives.feature_slice(WIDTH)]] *= 0.01
    if name == "relu-sparse":
        trainer.parameters.b_enc.data -= 2.5
    return trainer


class Killed(Exception):
    """Interrupts training, to simulate a kill."""


def train_case(name: str, folder: Path, collectives: Collectives, kill_at: int | None = None) -> Trainer:
    """Train one case in `folder`, from its checkpoint if there is one; also save the last step's gradients."""
    data, share = make_data(), collectives.batch_slice(BATCH)

    def read(start: int, stop: int) -> Iterator[dict[str, torch.Tensor]]:
        for i in range(start, stop):
            if i == kill_at:
                raise Killed
            rows = slice(i % 10 * BATCH + share.start, i % 10 * BATCH + share.stop)
            yield {site: x[rows] for site, x in data.items()}

    folder.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(name, collectives)
    history = train([trainer], read, folder, checkpoint_every=7, checkpoint_seconds=0)
    dictionary = trainer.dictionary()
    gradients = {name: value.grad for name, value in trainer.parameters.named()}
    if collectives.is_tensor_parallel:
        gradients |= {
            name: collectives.gather_features(gradients[name]) for name in PER_FEATURE if name in gradients
        }
    if collectives.rank == 0:
        save_dictionary(dictionary, folder / "dictionary", trainer.run.model_dump(mode="json"))
        torch.save(history[name], folder / "history.pt")
        torch.save(gradients, folder / "gradients.pt")
    return trainer


def train_all_cases(rank: int, folder: str) -> None:
    """Train all cases in both splits as one of two processes; for two of them also interrupt and resume."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    root = Path(folder)
    dist.init_process_group(
        "gloo", f"file://{root}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for split, kind in SPLITS.items():
        collectives = kind()
        for name in CASES:
            train_case(name, root / split / name, collectives)
        for name in ("batchtopk", "dead"):
            interrupted = root / split / f"{name}-interrupted"
            for kill_at in (10, 24):
                try:
                    train_case(name, interrupted, collectives, kill_at)
                except Killed:
                    continue
                raise AssertionError("training was not interrupted")
            train_case(name, interrupted, collectives)
    dist.destroy_process_group()
