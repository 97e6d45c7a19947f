"""The config of a study: one module per section, and the study that holds and checks them."""

from .activations import Activations
from .dictionaries import Run, Training
from .evaluation import Evaluation
from .model_shape import ModelShape
from .study import Study, load_study

__all__ = ["Activations", "Evaluation", "ModelShape", "Run", "Study", "Training", "load_study"]
