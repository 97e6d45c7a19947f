"""The config of a study. Each section has a module. The class `study.Study` contains and checks all sections."""

from .activations import Activations
from .dictionaries import Run, Training
from .evaluation import Evaluation
from .model_shape import ModelShape
from .study import Study, load_study

__all__ = ["Activations", "Evaluation", "ModelShape", "Run", "Study", "Training", "load_study"]
