"""Config sections, one module a stage, and the study that holds them together."""

from .activations import Activations
from .dictionaries import Run, Training
from .evaluation import Evaluation
from .model_shape import ModelShape
from .study import Study, load

__all__ = ["Activations", "Evaluation", "Run", "ModelShape", "Study", "Training", "load"]
