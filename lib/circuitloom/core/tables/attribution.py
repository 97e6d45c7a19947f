"""Tables of the circuits."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, STRING, Table

TRACE_NAME = (STRING, "name of the trace: a prompt and its target")
_NODE = (pa.int32(), "number of the node within its trace")
_NULLS = "null for other kinds"

TRACE = Table(
    "trace",
    "Prompts that were traced, each to its target.",
    ("trace",),
    {
        "trace": TRACE_NAME,
        "run": (STRING, "transcoders that it was traced through"),
        "prompt": (STRING, "the text"),
        "tokens": (pa.list_(STRING), "its tokens, the BOS in front among them"),
        "target": (STRING, "what is explained, as the config has it"),
        "dtype": (STRING, "number format of the sums"),
        "n_active": (INT, "features that fire, each counted at each position"),
        "n_nodes": (INT, "nodes of the pruned graph"),
        "n_edges": (INT, "edges of the pruned graph"),
        "replacement_score": (FLOAT, "of the influence that ends, the share that ends in tokens, not errors"),
        "completeness_score": (
            FLOAT,
            "share of the nodes' sources, weighted by influence, that are no errors",
        ),
        "completeness_strict": (FLOAT, "the same, an error counting as wholly unexplained"),
        "identity_error": (
            FLOAT,
            "largest difference of a kept node's value from the sum of its sources, over max(1, |value|)",
        ),
        "frozen_error": (
            FLOAT,
            "largest difference of an edge's measured frozen effect from the predicted one, over max(1, the sum of "
            "the target's absolute sources)",
        ),
        "free_correlation": (
            FLOAT,
            "correlation of free effects with the predicted ones, of edges from features; null if undefined",
        ),
        "free_correlation_all": (
            FLOAT,
            "the same of edges from errors, embeddings and positions too, whose loss no text makes",
        ),
        "seconds": (FLOAT, "time to trace it, checks left out"),
    },
)
NODE = Table(
    "node",
    "Nodes of circuits: of the pruned attribution graph, and the heads that paths go through.",
    ("trace", "node"),
    {
        "trace": TRACE_NAME,
        "node": _NODE,
        "kind": (STRING, "feature, error, embedding, position, constant, head, logit or difference"),
        "in_graph": (pa.bool_(), "it is a node of the pruned graph; else only paths go through it"),
        "is_root": (pa.bool_(), "it is what the trace explains"),
        "run": (STRING, f"transcoders that a feature or error is of; {_NULLS}"),
        "layer": (LAYER[0], f"block of a feature, error or head; {_NULLS}"),
        "feature": (FEATURE_INDEX[0], f"number of the feature; {_NULLS}"),
        "head": (pa.int16(), f"number of the head; {_NULLS}"),
        "position": (
            pa.int32(),
            "place in the prompt; of a head, the one that it reads; null for the constant",
        ),
        "token": (STRING, "token at the position; of a logit, the token it predicts"),
        "activation": (FLOAT, f"value of a feature; {_NULLS}"),
        "value": (
            FLOAT,
            "what its sources add up to: pre-activation of a feature, demeaned logit; null where it has none",
        ),
        "influence": (
            FLOAT,
            "share of the roots that goes through it, before pruning; null outside the graph",
        ),
        "probability": (FLOAT, f"weight of a root: probability of a logit, else 1; {_NULLS}"),
        "remainder": (FLOAT, "what of its value no kept edge makes up; null outside the graph"),
        "on_paths": (
            FLOAT,
            "sum of the contributions, to the first root, of the paths that end in it; null where none does",
        ),
    },
)
EDGE = Table(
    "edge",
    "Edges of pruned attribution graphs: direct effects, through any number of heads, predicted and measured.",
    ("trace", "source", "target"),
    {
        "trace": TRACE_NAME,
        "source": (_NODE[0], "node that acts"),
        "target": (_NODE[0], "node that is acted on"),
        "effect": (FLOAT, "what the source adds to the target's value"),
        "effect_frozen": (
            FLOAT,
            "value of the target before, minus after the source was taken away, all else held; null for constants",
        ),
        "effect_free": (FLOAT, "the same through the model itself, nothing held; null for constants"),
    },
)
PATH = Table(
    "path",
    "The greedy paths from the first root back, of all lengths, a row a step.",
    ("trace", "path", "step"),
    {
        "trace": TRACE_NAME,
        "path": (pa.int32(), "number of the path, by length, then by contribution"),
        "step": (pa.int16(), "place in the path, from 0, the root"),
        "node": (_NODE[0], "the node"),
        "effect": (FLOAT, "contribution to the root of the path up to here"),
        "n_steps": (pa.int16(), "steps of the path"),
    },
)
INTERVENTION = Table(
    "intervention",
    "What was done to features, and what became of each root.",
    ("trace", "intervention", "root", "frozen"),
    {
        "trace": TRACE_NAME,
        "intervention": (pa.int32(), "number within its trace"),
        "root": (_NODE[0], "node of the root"),
        "frozen": (pa.bool_(), "patterns, denominators, errors and other features were held"),
        "kind": (STRING, "ablate, scale, clamp, keep or patch"),
        "label": (STRING, "why: a node of the graph, the circuit's features, the config's change"),
        "features": (pa.list_(STRING), "what was changed, LAYER/NUMBER@POSITION"),
        "strength": (FLOAT, "factor (scale) or activation (clamp), else null"),
        "before": (FLOAT, "value of the root untouched"),
        "after": (FLOAT, "its value then"),
    },
)
