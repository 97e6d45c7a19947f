"""Tables of the case studies."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, RUN_NAME, STRING, Table

CASE_NAME = (STRING, "name of the case study")

CLAIM = Table(
    "claim",
    "Claims of case studies with measured values; a claim holds if its interval lies on the claimed side.",
    ("case_study", "claim"),
    {
        "case_study": CASE_NAME,
        "claim": (STRING, "name of the claim"),
        "statement": (STRING, "what is measured"),
        "value": (FLOAT, "measured value; null if undefined"),
        "low": (FLOAT, "lower end of the bootstrap interval; the value itself without resampling"),
        "high": (FLOAT, "upper end of the bootstrap interval"),
        "relation": (STRING, "above or below: claimed side of the bound"),
        "bound": (FLOAT, "bound of the claim"),
        "holds": (pa.bool_(), "the interval lies on the claimed side of the bound, the bound included"),
        "n": (INT, "number of rows that were resampled"),
        "of": (
            STRING,
            "unit of these rows: prompts, documents, pairs, years, digits, concepts, features, texts",
        ),
        "published": (FLOAT, "published value of the same quantity, else null"),
    },
)
OUTCOME = Table(
    "outcome",
    "Measurements of case studies, and of the common circuits of behaviours, per prompt and condition.",
    ("case_study", "measure", "condition", "prompt"),
    {
        "case_study": (STRING, "name of the case study, or of the behaviour"),
        "measure": (STRING, "name of the measurement, such as activation or greater_than"),
        "condition": (STRING, "intervention on the model or edit of the prompt"),
        "prompt": (pa.int32(), "number of the prompt within the case study"),
        "text": (STRING, "the prompt, or its edit if the condition is an edit"),
        "half": (STRING, "half of the prompts: finding or testing"),
        "value": (FLOAT, "what was measured"),
    },
)
SOURCE = Table(
    "source",
    "Sources in the circuits of case studies: means over prompts.",
    ("case_study", "circuit", "rank"),
    {
        "case_study": CASE_NAME,
        "circuit": (STRING, "name of the circuit within the case study, such as tokens or paths"),
        "rank": (pa.int32(), "rank among the circuit's sources by share, from 0"),
        "kind": (STRING, "token (embedding if read in one step), position, feature, head, error or constant"),
        "layer": (LAYER[0], "block of a feature, head or error; null for other kinds"),
        "component": (FEATURE_INDEX[0], "number of the feature or head; null for other kinds"),
        "relative_position": (
            pa.int16(),
            "position relative to the target: 0 for its own, -1 for the one before; null for all positions",
        ),
        "token": (STRING, "token at that position, if it is the same on all prompts"),
        "effect": (FLOAT, "contribution to the target, mean over the prompts"),
        "share": (FLOAT, "its magnitude over the sum of the magnitudes of all sources of the circuit"),
        "n_prompts": (INT, "number of prompts on which it is a source"),
    },
)
YEAR = Table(
    "year",
    "Features of a greater-than case by start year.",
    ("case_study", "layer", "feature", "year"),
    {
        "case_study": CASE_NAME,
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "rank": (
            pa.int32(),
            "rank among the layer's features, from 0, by variance over the prompts at the last token",
        ),
        "variance": (
            FLOAT,
            "variance over the prompts of the finding half at the last token, of activations times the norm of the "
            "feature's decoder row",
        ),
        "year": (
            pa.int16(),
            "last two digits of the start year; its tens or units digit if answers are single digits",
        ),
        "activation": (
            FLOAT,
            "activation at the last token times the norm of the feature's decoder row, mean over the year's prompts",
        ),
        "logit_attribution": (
            FLOAT,
            "direct logit attribution of a unit of `activation` to this year as the answer, minus the mean over the "
            "vocabulary, without the final norm's denominator",
        ),
        "deembedding_score": (
            FLOAT,
            "how strongly the weights read this year through `head`: through layer 0's features if the head lies after "
            "them, else from the embedding; null if no head lies before the layer's MLP",
        ),
        "head": (STRING, "head of the score, LAYER.NUMBER; null without one"),
    },
)
COMPONENT = Table(
    "component",
    "Top-ranked components of case studies of a logit difference, and what the circuit loses without each.",
    ("case_study", "rank"),
    {
        "case_study": CASE_NAME,
        "rank": (pa.int32(), "rank among the components of the basis, from 0"),
        "kind": (STRING, "feature or head"),
        "run": (STRING, "run of the feature; null for heads"),
        "layer": LAYER,
        "component": (FEATURE_INDEX[0], "number of the feature or head within its layer, from 0"),
        "attribution": (
            FLOAT,
            "first-order effect on the metric of ablating it, mean over the finding prompts",
        ),
        "worth": (
            FLOAT,
            "share of the behaviour that the circuit alone loses without it, testing prompts; null if it is not in the "
            "circuit, or was not measured",
        ),
        "worth_low": (FLOAT, "lower end of the bootstrap interval"),
        "worth_high": (FLOAT, "upper end of the bootstrap interval"),
        "in_circuit": (pa.bool_(), "it was kept when the circuit was pruned on the finding prompts"),
        "helps": (pa.bool_(), "the interval of worth lies above 0; null without an interval"),
    },
)
PLANTED = Table(
    "planted",
    "Best feature of each run for each planted concept, and how well its source tokens are the concept's cues.",
    ("case_study", "run", "concept"),
    {
        "case_study": CASE_NAME,
        "run": RUN_NAME,
        "kind": (STRING, "transcoder, sae or neurons"),
        "concept": (STRING, "name of the concept"),
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "threshold": (FLOAT, "activation above which the feature predicts the concept"),
        "precision": (FLOAT, "precision on the scoring half of the documents; null if it predicts nothing"),
        "recall": (FLOAT, "recall on the scoring half; null if no token has the concept"),
        "f1": (FLOAT, "F1 of the feature on the scoring half"),
        "f1_choosing": (FLOAT, "F1 on the choosing half of the documents"),
        "found": (pa.bool_(), "f1 reaches the bound `found` of the case study"),
        "together_layer": (pa.int16(), "block of the set of features with the best joint F1"),
        "n_together": (pa.int32(), "number of features in that set"),
        "f1_together": (FLOAT, "F1 of [any of them above its threshold] on the scoring half"),
        "n_traced": (
            INT,
            "number of places, in different documents, whose sources were traced; null if not found",
        ),
        "circuit_share": (
            FLOAT,
            "share of all tokens' contributions that the sources of circuits hold; null for other kinds",
        ),
        "circuit_precision": (
            FLOAT,
            "share of a circuit's sources, without optional words, that are cues of the concept",
        ),
        "circuit_strict": (FLOAT, "share of all sources of a circuit that are cues"),
        "circuit_recall": (FLOAT, "share of the cues with at least one word among a circuit's sources"),
        "gradient_share": (FLOAT, "as circuit_share, for sources by gradient"),
        "gradient_precision": (FLOAT, "as circuit_precision, for sources by gradient"),
        "gradient_strict": (FLOAT, "as circuit_strict, for sources by gradient"),
        "gradient_recall": (FLOAT, "as circuit_recall, for sources by gradient"),
    },
)
_GROUP = (STRING, "group of the run in the case study")
COMPARED_RUN = Table(
    "compared_run",
    "Runs of transcoders and cross-layer transcoders that a case study compares: size, sparsity and scores.",
    ("case_study", "run"),
    {
        "case_study": CASE_NAME,
        "group_name": _GROUP,
        "run": RUN_NAME,
        "parameters": (INT, "number of weights of all layers"),
        "features": (INT, "number of features of all layers"),
        "l0": (FLOAT, "active features per token, in all layers together"),
        "fvu": (FLOAT, "fraction of variance unexplained, mean over layers, each reading the original model"),
        "delta_ce": (
            FLOAT,
            "rise of the cross-entropy with all layers replaced at once, nats per token; null if not scored",
        ),
        "kl": (FLOAT, "KL(original || all layers replaced at once), nats per token; null if not scored"),
        "dead": (FLOAT, "fraction of features that fire on no scored token, mean over layers"),
        "concepts_found": (
            FLOAT,
            "share of the planted concepts with a feature of F1 at least `found`; else null",
        ),
        "concept_f1": (FLOAT, "F1 of the best feature, mean over the planted concepts; null without them"),
        "source_precision": (
            FLOAT,
            "precision of the sources of circuits against the concepts' cues, mean over the concepts found",
        ),
        "source_recall": (FLOAT, "recall of these sources, mean over the concepts found"),
    },
)
COMPARED_PROMPT = Table(
    "compared_prompt",
    "Attribution graphs of the same prompts through each compared run, and what ablations of their features do.",
    ("case_study", "run", "prompt"),
    {
        "case_study": CASE_NAME,
        "group_name": _GROUP,
        "run": RUN_NAME,
        "prompt": (pa.int32(), "number of the prompt within the case study"),
        "text": (STRING, "the prompt"),
        "target": (STRING, "what the graph explains"),
        "n_active": (INT, "active (layer, position, feature) triples"),
        "replacement_score": (FLOAT, "replacement score of the graph with all active features"),
        "completeness_score": (FLOAT, "completeness score of this graph"),
        "edge_correlation": (
            FLOAT,
            "correlation of direct effects with the drops that free ablations cause, over edges between the ablated "
            "features and from them to the roots; null if undefined",
        ),
        "effect_correlation": (
            FLOAT,
            "correlation of predicted with measured drops of the roots, if single features are ablated freely; the "
            "prediction is the effect over all paths; null if undefined",
        ),
        "effect_error": (
            FLOAT,
            "sum of |predicted - measured| over the sum of |measured|, of the same drops",
        ),
        "effect_slope": (
            FLOAT,
            "sum of predicted * measured over the sum of squares of predicted, of the same drops: 1 if measured "
            "effects are as large as predicted ones",
        ),
        "through_concept": (
            STRING,
            "concepts that are known to be a step of the computation, separated by commas; else null",
        ),
        "n_through": (INT, "active features of this concept; null without one, as all columns below"),
        "through": (FLOAT, "share of the influence on the roots that passes through these features"),
        "around": (FLOAT, "share that reaches tokens without passing through them"),
        "to_errors": (FLOAT, "share that reaches errors without passing through them"),
        "root": (FLOAT, "value of the roots in the original model, weighted as in the graph"),
        "drop_predicted": (FLOAT, "predicted drop of `root` if these features are ablated together"),
        "drop_measured": (FLOAT, "measured drop of `root` if they are ablated freely in the model"),
        "other_text": (
            STRING,
            "text in which the step has another value; null without one, as all columns below",
        ),
        "n_patched": (INT, "features of both values that are active in either text, once per position"),
        "patch_difference": (FLOAT, "`root` minus its value in the other text"),
        "patch_predicted": (
            FLOAT,
            "predicted drop of `root` if these features get their activations of the other text",
        ),
        "patch_measured": (FLOAT, "measured drop of `root` if they are patched freely in the model"),
    },
)
_TEMPLATE = (pa.int16(), "number of the template within the case study or behaviour")
_AGGREGATED = (pa.int32(), "number of the node within its template")
AGGREGATE_NODE = Table(
    "aggregate_node",
    "Attribution graphs of a template's prompts as one graph: nodes, matched by role.",
    ("behaviour", "template", "node"),
    {
        "behaviour": (STRING, "name of the case study, or of the behaviour"),
        "template": _TEMPLATE,
        "node": _AGGREGATED,
        "text": (STRING, "the template"),
        "target": (STRING, "what the graphs explain: the template's target"),
        "kind": (STRING, "feature, error, embedding or root"),
        "run": (STRING, "run of transcoders of a feature or error; null for other kinds"),
        "layer": (LAYER[0], "block of a feature or error; null for other kinds"),
        "feature": (FEATURE_INDEX[0], "feature index; null for other kinds"),
        "role": (pa.int32(), "place of the token among all tokens of the template's prompts, from 0"),
        "token": (STRING, "token of the role; the slot in braces if it differs between prompts"),
        "n_prompts": (INT, "number of prompts whose graphs have the node"),
        "share": (FLOAT, "share of the aggregated prompts whose graphs have the node"),
        "is_common": (pa.bool_(), "whether `share` is at least `common` of the case study or behaviour"),
        "influence": (FLOAT, "mean influence on the root over all prompts; 0 where a graph lacks the node"),
        "activation": (
            FLOAT,
            "mean activation of a feature over the prompts whose graphs have it; null for other kinds",
        ),
    },
)
AGGREGATE_EDGE = Table(
    "aggregate_edge",
    "Attribution graphs of a template's prompts as one graph: edges. Effects are over the prompts with the edge.",
    ("behaviour", "template", "source", "target"),
    {
        "behaviour": (STRING, "name of the case study, or of the behaviour"),
        "template": _TEMPLATE,
        "source": (_AGGREGATED[0], "source node"),
        "target": (_AGGREGATED[0], "target node"),
        "n_prompts": (INT, "number of prompts whose graphs have the edge"),
        "share": (FLOAT, "share of the aggregated prompts whose graphs have the edge"),
        "is_common": (pa.bool_(), "whether `share` is at least `common` of the case study or behaviour"),
        "effect": (FLOAT, "mean direct effect"),
        "effect_deviation": (FLOAT, "standard deviation of the effect over prompts; null for one prompt"),
        "effect_low": (FLOAT, "lower end of the 95 % interval of the mean effect; null for one prompt"),
        "effect_high": (FLOAT, "upper end of this interval"),
    },
)
