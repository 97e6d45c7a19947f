"""The tables: their Arrow schemas, what each column means, and how they are written and read."""

from .circuits import EDGE, INTERVENTION, NODE, PATH, STUDY
from .components import CAUSAL, FAITHFULNESS, FEATURE_EFFECT
from .corpus import CONCEPT, DOCUMENT, TOKEN
from .dictionaries import HISTORY, RUN
from .evaluation import BASELINE, CONCEPT_SCORE, DENSITY_HISTOGRAM, FEATURE_CONCEPT, METRIC, PARETO
from .features import ACTIVATION, CODE, EXAMPLE, FEATURE, HISTOGRAM, LOGIT
from .files import read_table, table_writer, write_table
from .language_model import LANGUAGE_MODEL, PRETRAINING
from .table import Table
from .weights import BLIND, CONNECTION, DEEMBEDDING

TABLES = (
    DOCUMENT, TOKEN, CONCEPT, PRETRAINING, LANGUAGE_MODEL, RUN, HISTORY, BASELINE, METRIC, FEATURE_CONCEPT,
    CONCEPT_SCORE, DENSITY_HISTOGRAM, PARETO, FEATURE, HISTOGRAM, ACTIVATION, CODE, EXAMPLE, LOGIT, STUDY, NODE, EDGE,
    PATH, INTERVENTION, DEEMBEDDING, CONNECTION, BLIND,
    CAUSAL, FAITHFULNESS, FEATURE_EFFECT,
)  # fmt: skip
__all__ = [
    "ACTIVATION", "BASELINE", "BLIND", "CAUSAL", "CODE", "CONCEPT", "CONCEPT_SCORE", "CONNECTION",
    "DEEMBEDDING", "DENSITY_HISTOGRAM", "DOCUMENT", "EDGE", "EXAMPLE", "FAITHFULNESS", "FEATURE",
    "FEATURE_CONCEPT", "FEATURE_EFFECT", "HISTOGRAM", "HISTORY", "INTERVENTION", "LANGUAGE_MODEL", "LOGIT",
    "METRIC", "NODE", "PARETO", "PATH", "PRETRAINING", "RUN", "STUDY", "TABLES", "TOKEN", "Table", "read_table",
    "table_writer", "write_table",
]  # fmt: skip
