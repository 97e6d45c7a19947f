"""What tables call what is neither a trained run nor one layer."""

TOGETHER = -1
"""Layer of a row that is of all layers: replaced at once, or the best of them."""

NEURONS, RESIDUAL = "neurons", "residual"
"""Names of the runs that stand for the model's own bases."""
