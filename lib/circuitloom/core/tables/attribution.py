"""Tables of traced prompts: attribution graphs, greedy paths, and interventions that check the graphs."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, STRING, Table

TRACE_NAME = (STRING, "name of the trace (a prompt and its target)")
_NODE = (pa.int32(), "number of the node within its trace")
_NULLS = "null for other kinds"

TRACE = Table(
    "trace",
    "Traced prompts, one per prompt and target.",
    ("trace",),
    {
        "trace": TRACE_NAME,
        "run": (STRING, "run of transcoders it was traced through"),
        "prompt": (STRING, "text of the prompt"),
        "tokens": (pa.list_(STRING), "tokens of the prompt, leading BOS included"),
        "target": (STRING, "what the graph explains, as written in the config"),
        "notes": (
            pa.list_(STRING),
            "how prompt and target were read, where a reader may think otherwise: the token of an answer, a BOS that "
            "counts once",
        ),
        "dtype": (STRING, "dtype of the model and of all sums"),
        "n_active": (INT, "active (layer, position, feature) triples"),
        "n_rows": (INT, "active features whose direct effects were computed to find the influence"),
        "unfollowed": (
            FLOAT,
            "share of the influence that reaches features without computed effects, and is not followed; bounds the "
            "error of the replacement score; 0 if all was followed",
        ),
        "n_nodes": (INT, "nodes of the pruned graph"),
        "n_edges": (INT, "edges of the pruned graph"),
        "replacement_score": (
            FLOAT,
            "replacement score: share of influence that ends in token embeddings, not errors",
        ),
        "completeness_score": (
            FLOAT,
            "completeness score: share of non-error sources, averaged over nodes by influence",
        ),
        "completeness_strict": (FLOAT, "completeness score that counts error nodes as unexplained"),
        "identity_error": (
            FLOAT,
            "largest error of the sum of a node's sources against its value in the model, over max(1, |value|)",
        ),
        "frozen_error": (
            FLOAT,
            "largest difference between an edge's measured frozen effect and the predicted one, over max(1, sum of "
            "the target's absolute sources)",
        ),
        "free_correlation": (
            FLOAT,
            "correlation of measured free effects with predicted ones, edges from features; null if undefined",
        ),
        "free_correlation_all": (
            FLOAT,
            "correlation of measured free effects with predicted ones, all edges but those from constants",
        ),
        "seconds": (FLOAT, "time to trace the prompt without the checks, seconds"),
    },
)
NODE = Table(
    "node",
    "Nodes of the pruned attribution graph, and nodes that only greedy paths go through, such as heads.",
    ("trace", "node"),
    {
        "trace": TRACE_NAME,
        "node": _NODE,
        "kind": (STRING, "feature, error, embedding, position, constant, head, logit or difference"),
        "in_graph": (
            pa.bool_(),
            "true for nodes of the pruned graph, false for nodes that are only on paths",
        ),
        "is_root": (pa.bool_(), "true for what the trace explains"),
        "run": (STRING, f"run of transcoders of a feature or error; {_NULLS}"),
        "layer": (LAYER[0], f"block of a feature, error or head; {_NULLS}"),
        "feature": (FEATURE_INDEX[0], f"feature index; {_NULLS}"),
        "head": (pa.int16(), f"head index; {_NULLS}"),
        "position": (
            pa.int32(),
            "position in the prompt; for a head, the position it attends to; null for the constant",
        ),
        "token": (STRING, "token at the position; for a logit, the predicted token"),
        "activation": (FLOAT, f"activation of a feature; {_NULLS}"),
        "value": (
            FLOAT,
            "sum of its sources: pre-activation of a feature or demeaned logit; null for nodes without sources",
        ),
        "influence": (
            FLOAT,
            "influence on the roots before pruning; null outside the graph and for roots",
        ),
        "probability": (FLOAT, f"weight of a root: probability of a logit, else 1; {_NULLS}"),
        "remainder": (FLOAT, "value minus the effects of kept edges; null outside the graph"),
        "on_paths": (
            FLOAT,
            "sum of the contributions to the first root of all paths that end in the node; null if none does",
        ),
    },
)
EDGE = Table(
    "edge",
    "Edges of pruned attribution graphs: direct effects through any number of heads, predicted and measured.",
    ("trace", "source", "target"),
    {
        "trace": TRACE_NAME,
        "source": (_NODE[0], "source node"),
        "target": (_NODE[0], "target node"),
        "effect": (FLOAT, "direct effect: what the source adds to the target's value"),
        "effect_frozen": (
            FLOAT,
            "target's value before minus after ablating the source, all else frozen; null for constants",
        ),
        "effect_free": (
            FLOAT,
            "target's value before minus after ablating the source in the model itself; null for constants",
        ),
    },
)
PATH = Table(
    "path",
    "Greedy paths back from the first root, of all lengths, one row per node of a path.",
    ("trace", "path", "step"),
    {
        "trace": TRACE_NAME,
        "path": (pa.int32(), "number of the path, ordered by length, then contribution"),
        "step": (pa.int16(), "index of the node in the path; 0 is the root"),
        "node": (_NODE[0], "node of the path"),
        "effect": (FLOAT, "contribution to the root of the path up to this node"),
        "n_steps": (pa.int16(), "number of edges of the path"),
    },
)
INTERVENTION = Table(
    "intervention",
    "Edits of features and the resulting value of each root.",
    ("trace", "intervention", "root", "frozen"),
    {
        "trace": TRACE_NAME,
        "intervention": (pa.int32(), "number of the intervention within its trace"),
        "root": (_NODE[0], "node of the root"),
        "frozen": (
            pa.bool_(),
            "true if attention patterns, norm denominators, errors and other features were frozen",
        ),
        "kind": (STRING, "ablate, scale, clamp, keep or patch"),
        "label": (STRING, "reason: a node of the graph, the circuit's features or the config's change"),
        "features": (pa.list_(STRING), "edited features as LAYER/NUMBER@POSITION"),
        "strength": (FLOAT, "factor (scale) or activation (clamp), else null"),
        "before": (FLOAT, "value of the root before the edit"),
        "after": (FLOAT, "value of the root after the edit"),
    },
)
ATTENTION_SCORE = Table(
    "attention_score",
    "Why heads read what they read: attention scores of the heads on greedy paths, as sums over pairs of sources.",
    ("trace", "layer", "head", "query", "key", "kind", "rank"),
    {
        "trace": TRACE_NAME,
        "layer": (LAYER[0], "block of the head"),
        "head": (pa.int16(), "head index"),
        "query": (pa.int32(), "position that reads"),
        "key": (pa.int32(), "position that is read"),
        "kind": (
            STRING,
            "pair: a source of the query and one of the key; query, key: one source and all of the other side",
        ),
        "rank": (pa.int32(), "from 0; pairs by |effect|, others by |relative_effect_plain|"),
        "query_source": (STRING, "name of the source of the query; null if the row sums over them"),
        "query_kind": (STRING, "feature, error, embedding, position or constant"),
        "query_layer": (LAYER[0], "block of the query's source, if it is a feature or an error"),
        "query_feature": (FEATURE_INDEX[0], "feature index of the query's source"),
        "query_position": (pa.int32(), "position of the query's source; null for the constant"),
        "key_source": (STRING, "name of the source of the key; null if the row sums over them"),
        "key_kind": (STRING, "feature, error, embedding, position or constant"),
        "key_layer": (LAYER[0], "block of the key's source, if it is a feature or an error"),
        "key_feature": (FEATURE_INDEX[0], "feature index of the key's source"),
        "key_position": (pa.int32(), "position of the key's source; null for the constant"),
        "effect": (FLOAT, "what the row adds to the score, before any cap"),
        "relative_effect": (
            FLOAT,
            "what it adds to the score minus the query's mean score, weighted by its pattern; null for pairs",
        ),
        "relative_effect_plain": (
            FLOAT,
            "what it adds to the score minus the query's mean score over the keys it may read; null for pairs",
        ),
        "effect_frozen": (
            FLOAT,
            "drop of the score (after any cap) if the source is ablated on this side alone, all else frozen; null if "
            "not measured",
        ),
        "effect_free": (
            FLOAT,
            "drop of the score if the query (or key) is that of a pass without the source; null if not measured",
        ),
        "pattern_free": (FLOAT, "drop of the attention in that pass; null if not measured"),
        "root_free": (FLOAT, "drop of the first root in that pass; null if not measured"),
        "score": (FLOAT, "the model's own score, before any cap"),
        "mean_score": (FLOAT, "mean score of the query over its keys, weighted by the pattern"),
        "mean_score_plain": (FLOAT, "mean score of the query over the keys it may read"),
        "pattern": (FLOAT, "attention that the key receives"),
        "contribution": (FLOAT, "what passes through the head edge to the first root, over the greedy paths"),
    },
)
_METHOD = (STRING, "how it was found: influence, total_effect or greedy")
SUBGRAPH = Table(
    "subgraph",
    "Smallest subgraphs of traced prompts: few features that keep a share of the target, all others ablated.",
    ("trace", "method"),
    {
        "trace": TRACE_NAME,
        "method": _METHOD,
        "share": (FLOAT, "share of the target that was asked for"),
        "errors": (STRING, "keep or ablate: whether errors stay or are set to zero"),
        "untouched": (FLOAT, "target of the original model: values of the roots, weighted as in the graph"),
        "none_kept": (FLOAT, "target with all features ablated"),
        "n_candidates": (INT, "features, or supernodes, that can reach the target"),
        "n_units": (
            INT,
            "features, or supernodes, of the subgraph; 0 if none was found, or if ablating all features does not "
            "lower the target",
        ),
        "n_features": (INT, "features of the subgraph"),
        "kept": (
            FLOAT,
            "share of the target that the subgraph alone keeps in the original model: (target - none_kept) / "
            "(untouched - none_kept); null if undefined",
        ),
        "kept_frozen": (
            FLOAT,
            "the same share with attention patterns, norm denominators and the kept features held at their values",
        ),
        "minimal": (
            pa.bool_(),
            "whether it was measured that no single feature or supernode can be left out",
        ),
        "replacement_score": (FLOAT, "replacement score of the graph in which all other features are errors"),
        "completeness_score": (FLOAT, "completeness score of this graph"),
        "seconds": (FLOAT, "time of the search, seconds"),
    },
)
SUBGRAPH_NODE = Table(
    "subgraph_node",
    "Features of the smallest subgraphs of traced prompts.",
    ("trace", "method", "rank"),
    {
        "trace": TRACE_NAME,
        "method": _METHOD,
        "rank": (
            pa.int32(),
            "place, from 0: in the order of the ranking, or for greedy from the largest to the smallest loss",
        ),
        "unit": (pa.int32(), "place of its supernode, or of itself"),
        "node": (_NODE[0], "its node in the table `node`; null if it is not there"),
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "position": (pa.int32(), "position in the prompt"),
        "token": (STRING, "token at the position"),
        "activation": (FLOAT, "activation of the feature on the prompt"),
    },
)
