"""All tables of a study: their Arrow schemas with the meaning of each column, and functions to read and write them."""

from .ablation import CAUSAL, FAITHFULNESS, FEATURE_EFFECT
from .activations import ACTIVATION_NORM
from .attribution import EDGE, INTERVENTION, NODE, PATH, SUBGRAPH, SUBGRAPH_NODE, TRACE
from .cases import (
    AGGREGATE_EDGE,
    AGGREGATE_NODE,
    CLAIM,
    COMPARED_PROMPT,
    COMPARED_RUN,
    COMPONENT,
    OUTCOME,
    PLANTED,
    SOURCE,
    YEAR,
)
from .corpus import CONCEPT, DOCUMENT, NOTICE, TOKEN
from .dictionaries import HISTORY, RUN
from .evaluation import (
    BASELINE,
    CONCEPT_SCORE,
    DENSITY_HISTOGRAM,
    DICTIONARY_BENCHMARK,
    FEATURE_CONCEPT,
    METRIC,
    PARETO,
)
from .features import ACTIVATION, CODE, EXAMPLE, FEATURE, HISTOGRAM, LOGIT
from .labels import LABEL
from .language_model import LANGUAGE_MODEL, PRETRAINING
from .table import Table, read_table, table_writer, write_table
from .weights import BLIND, CONNECTION, DEEMBEDDING

TABLES = (
    DOCUMENT, TOKEN, CONCEPT, NOTICE, PRETRAINING, LANGUAGE_MODEL, ACTIVATION_NORM, RUN, HISTORY, BASELINE, METRIC,
    FEATURE_CONCEPT, CONCEPT_SCORE, DENSITY_HISTOGRAM, PARETO, DICTIONARY_BENCHMARK,
    FEATURE, HISTOGRAM, ACTIVATION, CODE, EXAMPLE, LOGIT,
    LABEL, TRACE, NODE, EDGE, PATH, INTERVENTION, SUBGRAPH, SUBGRAPH_NODE, DEEMBEDDING, CONNECTION, BLIND,
    CAUSAL, FAITHFULNESS, FEATURE_EFFECT, CLAIM, OUTCOME, SOURCE, YEAR, COMPONENT, PLANTED,
    COMPARED_RUN, COMPARED_PROMPT, AGGREGATE_NODE, AGGREGATE_EDGE,
)  # fmt: skip
__all__ = [
    "ACTIVATION",
    "ACTIVATION_NORM",
    "AGGREGATE_EDGE",
    "AGGREGATE_NODE",
    "BASELINE",
    "BLIND",
    "CAUSAL",
    "CLAIM",
    "CODE",
    "COMPARED_PROMPT",
    "COMPARED_RUN",
    "COMPONENT",
    "CONCEPT",
    "CONCEPT_SCORE",
    "CONNECTION",
    "DEEMBEDDING",
    "DENSITY_HISTOGRAM",
    "DICTIONARY_BENCHMARK",
    "DOCUMENT",
    "EDGE",
    "EXAMPLE",
    "FAITHFULNESS",
    "FEATURE",
    "FEATURE_CONCEPT",
    "FEATURE_EFFECT",
    "HISTOGRAM",
    "HISTORY",
    "INTERVENTION",
    "LABEL",
    "LANGUAGE_MODEL",
    "LOGIT",
    "METRIC",
    "NODE",
    "NOTICE",
    "OUTCOME",
    "PARETO",
    "PATH",
    "PLANTED",
    "PRETRAINING",
    "RUN",
    "SOURCE",
    "SUBGRAPH",
    "SUBGRAPH_NODE",
    "TABLES",
    "TOKEN",
    "TRACE",
    "YEAR",
    "Table",
    "read_table",
    "table_writer",
    "write_table",
]  # fmt: skip
