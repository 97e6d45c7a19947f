"""What tokens, errors and biases add to a target by way of all features, however many lie between."""

import torch
from jaxtyping import Float
from torch import Tensor

from .attribution import sources
from .graph import Roots, graph_rows
from .local_model import LocalModel


@torch.inference_mode()
def total_flow(model: LocalModel, roots: Roots) -> Float[Tensor, " source"]:
    """What goes through each source to the roots, weighted and added up; signed. Columns: `sources(model)`.

    Of a feature, its activation times the roots' derivative by it on the frozen pass. Errors, embeddings, positions
    and the constant, which nothing flows into, add up to the roots' weighted values.
    """
    columns = sources(model)
    total = torch.cat([roots.weight.new_zeros(len(columns)), roots.weight])
    # rows are made of features that something flows through, whichever its sign
    reached = (total != 0).to(total)
    for nodes, effects in graph_rows(model, roots)(reached):
        # a feature's own value is what its sources add up to; a root counts by its weight
        value = effects.sum(1) if int(nodes[0]) < columns.active else torch.ones_like(effects[:, 0])
        total[: len(columns)] += (total[nodes] / value) @ effects
        reached.copy_(total != 0)
    return total[: len(columns)]
