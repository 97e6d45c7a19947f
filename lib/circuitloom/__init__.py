"""circuitloom: from text to verified circuits through the MLPs of a language model."""
