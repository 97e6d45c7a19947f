"""Cases of cross-layer transcoders that one process and two processes train, on the same data."""

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tests.dictionaries.training_cases import SPLITS, moments
from torch import Tensor

from circuitloom.config import Run
from circuitloom.dictionaries.cross_layer import save_cross_layer_transcoder
from circuitloom.dictionaries.training.collectives import SINGLE_PROCESS, Collectives
from circuitloom.dictionaries.training.cross_layer_trainer import CrossLayerTrainer, batch_key
from circuitloom.dictionaries.training.sweep import train

D, WIDTH, TOKENS = 8, 48, 64
LAYERS = (0, 1, 2)
BATCH, STEPS = 64, 30
ACTS = {
    "relu": {"act": "relu", "sparsity": 0.02},
    "relu-tanh": {"act": "relu", "sparsity": 0.02, "penalty": "tanh"},
    "jumprelu": {"act": "jumprelu", "sparsity": 0.02, "bandwidth": 0.5},
    "tanh": {"act": "jumprelu", "sparsity": 0.02, "penalty": "tanh", "bandwidth": 0.5},
    "topk": {"act": "topk", "k": 3},
    "batchtopk": {"act": "batchtopk", "k": 3},
    "budget": {"act": "batchtopk", "k": 3, "budget": "all"},
    "skip": {"act": "topk", "k": 3, "skip": True},
}
SEVERAL = {
    **{name: ACTS[name] for name in ("budget", "jumprelu", "skip")},
    # with split features, one process has all dead features
    "dead": {"act": "topk", "k": 3, "dead_tokens": 5 * BATCH},
    "revived": {**ACTS["tanh"], "dead_tokens": 5 * BATCH, "pre_activation": 0.01},
}
"""Cases that two processes train."""
INTERRUPTED = "budget"
"""The case that two processes also train with an interruption."""


def clt(**keys) -> Run:
    shared = {"kind": "clt", "width": WIDTH, "precision": "float32", "name": "r"}
    return Run(**{**shared, "batch": BATCH, "tokens": BATCH * STEPS, "learning_rate": 1e-2, **keys})


def make_data(batches: int = 10) -> dict[str, Tensor]:
    """x and y of each layer are linear mixtures of the same sparse causes, in different units."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(BATCH * batches, 30, generator=generator)
    causes = causes * (torch.rand(causes.shape, generator=generator) < 0.08)
    data = {}
    for layer in LAYERS:
        for site, scale in (("mlp_in", 3.0), ("mlp_out", 0.1 + layer)):
            data[batch_key(site, layer)] = scale * causes @ torch.randn(30, D, generator=generator) - 0.2
    return data


def make_trainer(
    run: Run,
    data: dict[str, Tensor],
    layers: Sequence[int] = LAYERS,
    collectives: Collectives = SINGLE_PROCESS,
) -> CrossLayerTrainer:
    return CrossLayerTrainer(
        run, layers, {key: moments(rows) for key, rows in data.items()}, data, collectives
    )


def reader(data: dict[str, Tensor], kill_at: int | None = None):
    def read(start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        for i in range(start, stop):
            if i == kill_at:
                raise InterruptedError
            yield {key: rows[i % 10 * BATCH : (i % 10 + 1) * BATCH] for key, rows in data.items()}

    return read


def train_case(name: str, folder: Path, collectives: Collectives, kill_at: int | None = None) -> None:
    """Train one case in `folder`, from its checkpoint if there is one. Save its history, the last step's gradients of
    layer 0 and the transcoder."""
    data, share = make_data(), collectives.batch_slice(BATCH)
    keys = SEVERAL[name]
    trainer = make_trainer(clt(**keys), data, collectives=collectives)
    if "dead_tokens" in keys:
        weak = torch.zeros(WIDTH, dtype=torch.bool)
        weak[WIDTH // 2 :] = True
        for p in trainer.parameters:
            local = weak[collectives.feature_slice(WIDTH)]
            p.W_enc.data[local] *= 0.01
            p.b_enc.data[local] -= 0.1

    def read(start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        for batch in reader(data, kill_at)(start, stop):
            yield {key: rows[share] for key, rows in batch.items()}

    folder.mkdir(parents=True, exist_ok=True)
    history = train([trainer], read, folder, checkpoint_every=7, checkpoint_seconds=0)
    gradient = trainer.parameters[0].W_enc.grad
    assert gradient is not None
    if collectives.is_tensor_parallel:
        gradient = collectives.gather_features(gradient)
    transcoder = trainer.transcoder()
    if collectives.rank == 0:
        folders = {layer: folder / f"layer{layer}" for layer in LAYERS}
        save_cross_layer_transcoder(transcoder, folders, {})
        torch.save({"history": history["r"], "gradient": gradient}, folder / "result.pt")


def train_in_two_processes(rank: int, folder: str) -> None:
    """Train all cases in both splits as one of two processes. One is also interrupted and resumed."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    root = Path(folder)
    dist.init_process_group(
        "gloo", f"file://{root}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=600)
    )
    for split, kind in SPLITS.items():
        collectives = kind()
        for name in SEVERAL:
            train_case(name, root / split / name, collectives)
        interrupted = root / split / "interrupted"
        try:
            train_case(INTERRUPTED, interrupted, collectives, kill_at=17)
        except InterruptedError:
            train_case(INTERRUPTED, interrupted, collectives)
        else:
            raise AssertionError("training was not interrupted")
    dist.destroy_process_group()
