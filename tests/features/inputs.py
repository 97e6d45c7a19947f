"""A basis with many tied activations, its tables, and its dense activations."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tests.activations.inputs import make_tokens
from tests.models import VOCABULARY

from circuitloom.config.features import Features
from circuitloom.core.tables import read_table
from circuitloom.corpus.tokens import Tokens
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.features.basis import FeatureBasis
from circuitloom.features.tabulation import tabulate
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel

WIDTH, LAYER = 24, 1
STRINGS = [f" w{number}" for number in range(VOCABULARY)]
NAMES = ("activation", "code", "example", "feature", "histogram")
CONFIG = Features(examples=7, bands=3, band_examples=4, before=5, after=3, bins=6, batch=3)


def make_basis(model: LanguageModel, digest: str = "tied") -> FeatureBasis:
    """Activations have few levels, so that most are tied; feature 3 never fires, feature 4 always does."""
    generator = torch.Generator().manual_seed(0)
    site = Site("mlp_in", LAYER)
    d = capture(model, torch.tensor([[1]]), [site])[site].shape[-1]
    weight = torch.randn(WIDTH, d, generator=generator)
    bias = torch.randn(WIDTH, generator=generator) - 1
    bias[3], bias[4] = -1000, 1000

    def encode(x):
        z = (x @ weight.T + bias).round().clamp(min=0) / 4
        token, feature = z.nonzero(as_tuple=True)
        return token, feature, z[token, feature]

    decoder = torch.randn(WIDTH, d, generator=generator)
    return FeatureBasis(
        "tied", LAYER, site, WIDTH, encode, {LAYER: decoder}, decoder.norm(dim=1), "mlp_out", weight.norm(dim=1), bias,
        digest,
    )  # fmt: skip


def dense(basis: FeatureBasis, model: LanguageModel, tokens: Tokens) -> np.ndarray:
    """Activations at all positions of the flattened token array, 0 at positions that are not scored."""
    part = load_sequences(tokens, slice(None))
    with torch.inference_mode():
        x = torch.cat([capture(model, row[None], [basis.site])[basis.site][0] for row in part.token])
    token, feature, value = basis.encode(x)
    z = np.zeros((part.token.numel(), WIDTH), np.float32)
    z[token, feature] = value
    return z * part.scored.flatten().numpy()[:, None]


@dataclass(frozen=True)
class Case:
    tokens: Tokens
    z: np.ndarray
    tables: dict[str, pa.Table]

    def rows(self, table: str, **equal) -> list[dict]:
        rows = self.tables[table].to_pylist()
        return [row for row in rows if all(row[key] == value for key, value in equal.items())]


def write(
    model: LanguageModel, folder: Path, basis: FeatureBasis | None = None, config: Features = CONFIG
) -> Case:
    """The tables of `basis` in `folder`, read back."""
    basis, tokens = basis or make_basis(model), make_tokens(40)
    paths = {name: folder / "layer1" / f"{name}.parquet" for name in NAMES}
    tabulate([basis], model, tokens, STRINGS, config, [paths])
    return Case(tokens, dense(basis, model, tokens), {name: read_table(path) for name, path in paths.items()})
