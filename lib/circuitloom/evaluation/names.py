"""What tables call what is neither a trained run nor one layer."""

TOGETHER = -1
"""Layer of a row that says what happens when all layers are replaced at once."""

NEURONS, RESIDUAL = "neurons", "residual"
"""Names of the runs that stand for the model's own bases."""
