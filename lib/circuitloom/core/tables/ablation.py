"""Tables of circuits in a basis of components, which are found by intervention alone."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, STRING, Table

_BEHAVIOUR = (STRING, "name of the behaviour: some prompts, and a number read off the prediction behind each")
_BASIS = (STRING, "what the model was taken to be made of: a run, heads, neurons")
_ABLATION = (
    STRING,
    "what ablated components were set to: zero, mean (over its prompts) or position_mean (over them at each "
    "position)",
)

CAUSAL = Table(
    "causal",
    "What became of a prediction when a component was ablated, alone, nothing else held. Features stand in for "
    "nothing: ablating one takes its activation times its row from what the site holds.",
    ("behaviour", "prompt", "basis", "ablation", "kind", "run", "layer", "component", "position"),
    {
        "behaviour": _BEHAVIOUR,
        "prompt": (pa.int32(), "number of the prompt within its behaviour, from 0"),
        "basis": _BASIS,
        "ablation": _ABLATION,
        "kind": (STRING, "feature, head or neuron"),
        "run": (STRING, "name of the dictionary's run; null for heads and neurons"),
        "layer": LAYER,
        "component": (pa.int32(), "number of the feature, head or neuron within its layer, from 0"),
        "position": (pa.int16(), "where it was ablated; null for all positions but the first and BOS"),
        "activation": (
            FLOAT,
            "value of the feature or neuron, norm of the head's output; the largest by magnitude where position is "
            "null",
        ),
        "attribution": (
            FLOAT,
            "the effect to first order: (value - what it is set to) times the metric's gradient",
        ),
        "effect": (FLOAT, "metric before, minus after the component was ablated"),
        "kl": (FLOAT, "KL(before || after) of the prediction behind the prompt, nats"),
    },
)
FEATURE_EFFECT = Table(
    "feature_effect",
    "How ablating a feature of resid_mid, and nothing else, changes the features of the same layer's MLP at the same "
    "token. Pairs that never change are left out, and those beyond the targets kept of each source.",
    ("behaviour", "source_run", "target_run", "layer", "source", "target"),
    {
        "behaviour": (STRING, "name of the behaviour whose tokens it was measured on, or held_out"),
        "source_run": (STRING, "run of SAEs on resid_mid"),
        "target_run": (STRING, "run of SAEs on mlp_out, or of transcoders"),
        "layer": LAYER,
        "source": (FEATURE_INDEX[0], "number of the feature that is ablated"),
        "target": (FEATURE_INDEX[0], "number of the feature that changes"),
        "n_tokens": (INT, "tokens on which the source fires and was ablated"),
        "n_changed": (INT, "those on which the target changes"),
        "effect": (
            FLOAT,
            "mean over n_tokens of the target's activation before, minus after: positive where the source excites it",
        ),
        "absolute_effect": (FLOAT, "mean over n_tokens of the magnitude of that"),
    },
)
FAITHFULNESS = Table(
    "faithfulness",
    "How much of a behaviour the top k components of a basis recover alone, and how much is left without them.",
    ("behaviour", "basis", "ablation", "ranking", "n_kept"),
    {
        "behaviour": _BEHAVIOUR,
        "basis": _BASIS,
        "ablation": _ABLATION,
        "ranking": (
            STRING,
            "components are ranked by the magnitude of their mean `effect` (measured; to first order where it was not) "
            "or `attribution` (to first order), or by `signed attribution`, those first that raise the metric most; by "
            "`variance` over prompts at the last token; or they are a `circuit`, found by paths",
        ),
        "n_kept": (INT, "k"),
        "n_components": (INT, "components of the basis"),
        "n_prompts": (INT, "prompts that metrics are means over"),
        "metric_untouched": (FLOAT, "mean metric of the untouched model"),
        "metric_kept": (FLOAT, "mean metric with the top k alone; with k = 0 everything is ablated"),
        "metric_removed": (FLOAT, "mean metric without the top k"),
        "faithfulness": (
            FLOAT,
            "(metric_kept - metric_kept at k = 0) / (metric_untouched - metric_kept at k = 0); null if undefined",
        ),
        "remaining": (
            FLOAT,
            "the same share of metric_removed: what is left without the top k; null if undefined",
        ),
        "kl": (FLOAT, "KL(untouched || the top k alone), mean over prompts, nats"),
    },
)
