"""Computes the direct effects of features on logits (direct logit attribution), for the table `logit`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.progress import progress
from ..core.tables import LOGIT, table_writer
from ..language_model.model import LanguageModel
from ..language_model.residual import norm_vjp, read_norm_after_mlp, read_unembedding
from .basis import FeatureBasis

MAX_EFFECTS = 2**25
"""Maximum number of (feature, token) effects in memory."""
ROW_GROUP = 2**14


@torch.inference_mode()
def write_logit_effects(
    basis: FeatureBasis, model: LanguageModel, strings: Sequence[str], wanted: int, path: Path
) -> None:
    """Write the table `logit` to `path`.

    For each feature, the table has the `wanted` largest and the `wanted` smallest direct effects on logits.
    `strings[i]` is the text of token id i. The gain of a norm that follows the MLP is included for features that write
    mlp_out, but not the norm's denominator, which depends on the token. The table is empty if the basis does not write
    to the residual stream.
    """
    with table_writer(LOGIT, path) as writer:
        # mlp_in is the output of the norm, which is not in the residual stream
        if basis.site_out == "mlp_in":
            return
        reads = read_unembedding(model).rows
        # if the vocabulary is padded, the last rows are not tokens
        reads = reads[: len(strings)]
        if basis.site_out == "mlp_out":
            reads = norm_vjp(read_norm_after_mlp(model, basis.layer), reads)
        wanted = min(wanted, len(reads))
        size = max(1, MAX_EFFECTS // len(reads))
        with progress(f"logits: {basis.run} layer {basis.layer}", basis.width, "features") as bar:
            for low in range(0, basis.width, size):
                effects = basis.decoder[low : low + size].to(reads.device) @ reads.T
                writer.write_table(_rows(basis, low, effects, strings, wanted), row_group_size=ROW_GROUP)
                bar.update(len(effects))


def _rows(
    basis: FeatureBasis,
    low: int,
    effects: Float[Tensor, "feature token"],
    strings: Sequence[str],
    wanted: int,
) -> pa.Table:
    found = [effects.topk(wanted, dim=1, largest=largest) for largest in (True, False)]
    effect = torch.stack([each.values for each in found], 1).cpu().numpy()
    token = torch.stack([each.indices for each in found], 1).cpu().numpy()
    feature, side, rank = np.indices(token.shape)
    columns = {
        "run": pa.repeat(basis.run, token.size),
        "layer": np.full(token.size, basis.layer),
        "feature": feature.ravel() + low,
        "sign": 1 - 2 * side.ravel(),
        "rank": rank.ravel(),
        "token_id": token.ravel(),
        "token": pa.array(strings).take(pa.array(token.ravel())),
        "effect": effect.ravel(),
    }
    return pa.table(columns).cast(LOGIT.schema)
