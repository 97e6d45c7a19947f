"""Computes the direct effects of features on logits (direct logit attribution), for the table `logit`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ..core.progress import progress
from ..core.tables import LOGIT, table_writer
from ..language_model.model import LanguageModel
from ..language_model.residual import norm_jvp, read_norm_after_mlp, read_unembedding
from ..language_model.strongest_tokens import StrongestTokens, strongest_tokens
from .basis import FeatureBasis

ROW_GROUP = 2**14
FEATURES = 4096
"""Number of features whose rows are written at once."""


@torch.inference_mode()
def write_logit_effects(
    basis: FeatureBasis, model: LanguageModel, strings: Sequence[str], wanted: int, path: Path
) -> None:
    """Write the table `logit` to `path`.

    For each feature, the table has the `wanted` largest and the `wanted` smallest direct effects on logits. Of equal
    effects, those on lower token ids come first. `strings[i]` is the text of token id i. The effect of a feature that
    writes to several layers is the sum over these layers. The gain of a norm that follows the MLP is included for
    features that write mlp_out, but not the norm's denominator, which depends on the token. The table is empty if the
    basis does not write to the residual stream.
    """
    with table_writer(LOGIT, path) as writer:
        # mlp_in is the output of the norm, which is not in the residual stream
        if basis.site_out == "mlp_in":
            return
        reads = read_unembedding(model).rows
        # if the vocabulary is padded, the last rows are not tokens
        reads, texts = reads[: len(strings)], pa.array(strings)
        norms = {
            output: read_norm_after_mlp(model, output) if basis.site_out == "mlp_out" else None
            for output in basis.decoders
        }
        # decoders of a mapped dictionary can be narrower
        dtype = basis.decoder_norm.dtype
        with progress(f"logits: {basis.run} layer {basis.layer}", basis.width, "features") as bar:
            for low in range(0, basis.width, FEATURES):
                added = [
                    norm_jvp(norms[output], decoder[low : low + FEATURES].to(reads.device, dtype))
                    for output, decoder in basis.decoders.items()
                ]
                vectors = torch.stack(added).sum(0) if len(added) > 1 else added[0]
                found = strongest_tokens(vectors, reads, wanted, bar.update)
                writer.write_table(_rows(basis, low, found, texts), row_group_size=ROW_GROUP)


def _rows(basis: FeatureBasis, low: int, found: StrongestTokens, texts: pa.StringArray) -> pa.Table:
    feature, side, rank = np.indices(found.token.shape)
    columns = {
        "run": pa.repeat(basis.run, feature.size),
        "layer": np.full(feature.size, basis.layer),
        "feature": feature.ravel() + low,
        "sign": 1 - 2 * side.ravel(),
        "rank": rank.ravel(),
        "token_id": found.token.ravel(),
        "token": texts.take(pa.array(found.token.ravel())),
        "effect": found.product.ravel(),
    }
    return pa.table(columns).cast(LOGIT.schema)
