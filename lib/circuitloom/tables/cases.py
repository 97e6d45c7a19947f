"""Tables of the case studies."""

import pyarrow as pa

from .table import FEATURE_NUMBER, FLOAT, INT, LAYER, RUN_NAME, STRING, Table

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
        "component": (FEATURE_NUMBER[0], "number of the feature or head; null for other kinds"),
        "relative_position": (
            pa.int16(),
            "where it stands: 0 for the target's own position, -1 for the one before; null for all",
        ),
        "token": (STRING, "the token there, where it is one"),
        "effect": (FLOAT, "what it adds to the target, mean over the prompts"),
        "share": (FLOAT, "that over the sum of all sources' magnitudes"),
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
        "feature": FEATURE_NUMBER,
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
        "component": (FEATURE_NUMBER[0], "number of the feature or head within its layer, from 0"),
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
