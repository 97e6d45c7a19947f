"""Tables of the case studies."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, RUN_NAME, STRING, Table

CASE_NAME = (STRING, "name of the case study")
_SAMPLES = "of the bootstrap interval"

CLAIM = Table(
    "claim",
    "What case studies claim, each claim with its measured value; it holds where the whole interval keeps the bound.",
    ("case_study", "claim"),
    {
        "case_study": CASE_NAME,
        "claim": (STRING, "name of the claim"),
        "statement": (STRING, "what is measured, in words"),
        "value": (FLOAT, "what was measured; null where it could not be"),
        "low": (FLOAT, f"lower end {_SAMPLES}; the value itself where nothing was sampled"),
        "high": (FLOAT, f"upper end {_SAMPLES}"),
        "relation": (STRING, "above or below: the side of the bound that is claimed"),
        "bound": (FLOAT, "what the value is claimed to be above or below"),
        "holds": (pa.bool_(), "the whole interval lies on the claimed side, the bound itself included"),
        "n": (INT, "how many were sampled"),
        "of": (STRING, "what they are: prompts, documents, pairs"),
        "published": (FLOAT, "the value that was published for the same, else null"),
    },
)
OUTCOME = Table(
    "outcome",
    "What case studies measured on each prompt, under each condition.",
    ("case_study", "measure", "condition", "prompt"),
    {
        "case_study": CASE_NAME,
        "measure": (STRING, "what was measured, such as activation or greater_than"),
        "condition": (STRING, "what was done to the model or the prompt"),
        "prompt": (pa.int32(), "number of the prompt within the case"),
        "text": (STRING, "the prompt, or its edit where the condition is one"),
        "half": (STRING, "finding or testing: which half of the prompts it is of"),
        "value": (FLOAT, "what was measured"),
    },
)
SOURCE = Table(
    "source",
    "What the circuits of case studies are made of, over their prompts.",
    ("case_study", "circuit", "rank"),
    {
        "case_study": CASE_NAME,
        "circuit": (STRING, "which circuit of the case"),
        "rank": (pa.int32(), "place among the circuit's sources, from 0, by share"),
        "kind": (STRING, "token, position, feature, head, error or constant"),
        "layer": (LAYER[0], "block of a feature, head or error; null for other kinds"),
        "component": (FEATURE_INDEX[0], "number of the feature or head; null for other kinds"),
        "relative_position": (
            pa.int16(),
            "where it stands: 0 for the target's own position, -1 for the one before; null for all",
        ),
        "token": (STRING, "the token there, where it is one"),
        "effect": (FLOAT, "what it adds to the target, mean over the prompts"),
        "share": (FLOAT, "its magnitude over the sum of those of all sources of the circuit"),
        "n_prompts": (INT, "prompts on which it is a source"),
    },
)
YEAR = Table(
    "year",
    "Features of a greater-than case, start year by start year.",
    ("case_study", "layer", "feature", "year"),
    {
        "case_study": CASE_NAME,
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "rank": (
            pa.int32(),
            "place among the layer's features, from 0, by variance over the prompts at their last token",
        ),
        "variance": (FLOAT, "that variance, over the finding half"),
        "year": (pa.int16(), "start year, its last two digits"),
        "activation": (FLOAT, "at the last token, mean over the year's prompts"),
        "logit_attribution": (
            FLOAT,
            "direct effect of an activation of 1 on the logit of this year as an answer, the mean over the vocabulary "
            "taken off, the final norm's denominator left out",
        ),
        "deembedding_score": (
            FLOAT,
            "how far the weights read this year through `head`: by way of layer 0's features where the head lies "
            "behind them, else its embedding; null where no head lies before the layer's MLP",
        ),
        "head": (STRING, "head that the score goes through, LAYER.NUMBER; null likewise"),
    },
)
COMPONENT = Table(
    "component",
    "Components of case studies that rank among those that recover the behaviour, and what the circuit made of them "
    "loses without each.",
    ("case_study", "rank"),
    {
        "case_study": CASE_NAME,
        "rank": (
            pa.int32(),
            "place among the basis' components, from 0, in the order in which they are kept",
        ),
        "kind": (STRING, "feature or head"),
        "run": (STRING, "transcoders that a feature is of; null for heads"),
        "layer": LAYER,
        "component": (FEATURE_INDEX[0], "number of the feature or head within its layer, from 0"),
        "attribution": (
            FLOAT,
            "effect on the metric of setting it to its ablated value, to first order, mean over the finding prompts",
        ),
        "worth": (
            FLOAT,
            "share of the behaviour that the circuit alone loses without it, over the testing prompts; null where it "
            "is not in the circuit",
        ),
        "worth_low": (FLOAT, f"lower end {_SAMPLES}"),
        "worth_high": (FLOAT, f"upper end {_SAMPLES}"),
        "in_circuit": (
            pa.bool_(),
            "it was kept when what is worth nothing on the finding prompts was pruned",
        ),
        "helps": (pa.bool_(), "its whole interval lies above 0; null where it is not in the circuit"),
    },
)
_ON_SCORING = "on the documents that nothing was chosen on"
PLANTED = Table(
    "planted",
    "What dictionaries and neurons make of each planted concept; whether circuits come from the words that tell it.",
    ("case_study", "run", "concept"),
    {
        "case_study": CASE_NAME,
        "run": RUN_NAME,
        "kind": (STRING, "transcoder, sae or neurons"),
        "concept": (STRING, "name of the concept"),
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "threshold": (FLOAT, "activation above which the feature says the concept"),
        "precision": (
            FLOAT,
            f"share of what it says that is right, {_ON_SCORING}; null where it says nothing",
        ),
        "recall": (FLOAT, "share of the concept's tokens on which it says so; null where there are none"),
        "f1": (FLOAT, f"F1 of the feature, {_ON_SCORING}"),
        "f1_choosing": (FLOAT, "F1 on the documents that feature and threshold were chosen on"),
        "found": (pa.bool_(), "f1 reaches the bound at which a concept counts as found"),
        "together_layer": (pa.int16(), "block of the set of features that says it best together"),
        "n_together": (pa.int32(), "features of that set"),
        "f1_together": (FLOAT, f"F1 of [any of them above its threshold], {_ON_SCORING}"),
        "n_traced": (
            INT,
            "places, in different documents, whose sources were looked at; null where it was not found",
        ),
        "circuit_share": (
            FLOAT,
            "share of what all tokens contribute that the sources of a circuit hold; null for others",
        ),
        "circuit_precision": (
            FLOAT,
            "share of a circuit's sources, optional words left out, that tell the concept",
        ),
        "circuit_strict": (FLOAT, "share of all sources of a circuit that tell the concept"),
        "circuit_recall": (FLOAT, "share of the cues of which a word is among a circuit's sources"),
        "gradient_share": (FLOAT, "as circuit_share, for sources by the model's own gradient"),
        "gradient_precision": (FLOAT, "as circuit_precision, by the gradient"),
        "gradient_strict": (FLOAT, "as circuit_strict, by the gradient"),
        "gradient_recall": (FLOAT, "as circuit_recall, by the gradient"),
    },
)
