"""Tables about ablations of components: causal effects, effects of features on features, and faithfulness curves."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, STRING, Table

_BEHAVIOUR = (STRING, "name of the behaviour: prompts, and a metric of the logits at their last position")
_BASIS = (STRING, "components that the model is decomposed into: a run's features, heads or neurons")
_ABLATION = (
    STRING,
    "value of ablated components: zero, mean (over prompts and positions) or position_mean (over prompts, per "
    "position)",
)

CAUSAL = Table(
    "causal",
    "Effect of ablating one component on the metric, nothing frozen. The model keeps its MLPs: ablating a feature "
    "subtracts its activation times its decoder row from the site's value.",
    ("behaviour", "prompt", "basis", "ablation", "kind", "run", "layer", "component", "position"),
    {
        "behaviour": _BEHAVIOUR,
        "prompt": (pa.int32(), "number of the prompt within its behaviour, from 0"),
        "basis": _BASIS,
        "ablation": _ABLATION,
        "kind": (STRING, "feature, head or neuron"),
        "run": (STRING, "run of the dictionary; null for heads and neurons"),
        "layer": LAYER,
        "component": (pa.int32(), "number of the feature, head or neuron within its layer, from 0"),
        "position": (
            pa.int16(),
            "position of the ablation; null for all positions except the first and separators of documents",
        ),
        "activation": (
            FLOAT,
            "value of the feature or neuron, or norm of the head's output; of largest magnitude if position is null",
        ),
        "attribution": (
            FLOAT,
            "first-order estimate of the effect: (value - ablated value) times the metric's gradient",
        ),
        "effect": (FLOAT, "metric of the untouched model minus metric with the component ablated"),
        "kl": (FLOAT, "KL(untouched || ablated) of the prediction at the last position, nats"),
    },
)
FEATURE_EFFECT = Table(
    "feature_effect",
    "Effect of ablating a feature of resid_mid on the features of the same layer's MLP at the same token. Pairs "
    "without any change are omitted, and weaker targets beyond the limit per source.",
    ("behaviour", "source_run", "target_run", "layer", "source", "target"),
    {
        "behaviour": (STRING, "behaviour on whose tokens it was measured, or held_out"),
        "source_run": (STRING, "run of SAEs on resid_mid"),
        "target_run": (STRING, "run of SAEs on mlp_out or mlp_added, or of transcoders"),
        "layer": LAYER,
        "source": (FEATURE_INDEX[0], "number of the feature that is ablated"),
        "target": (FEATURE_INDEX[0], "number of the feature that changes"),
        "n_tokens": (INT, "tokens on which the source fires and is ablated"),
        "n_changed": (INT, "tokens on which the target changes"),
        "effect": (
            FLOAT,
            "mean drop of the target's activation over n_tokens; positive if the source excites it",
        ),
        "absolute_effect": (FLOAT, "mean over n_tokens of the magnitude of the change"),
    },
)
FAITHFULNESS = Table(
    "faithfulness",
    "Metric with only the top k components of a basis kept, and with only these ablated.",
    ("behaviour", "basis", "ablation", "ranking", "n_kept"),
    {
        "behaviour": _BEHAVIOUR,
        "basis": _BASIS,
        "ablation": _ABLATION,
        "ranking": (
            STRING,
            "order of components: by magnitude of mean `effect` (first order if unmeasured) or mean `attribution`, by "
            "`signed attribution` (raising the metric most first), by `variance` over prompts at the last token; or a "
            "`circuit` found by paths",
        ),
        "n_kept": (INT, "k"),
        "n_components": (INT, "components of the basis"),
        "n_prompts": (INT, "prompts over which metrics are averaged"),
        "metric_untouched": (FLOAT, "mean metric of the untouched model"),
        "metric_kept": (FLOAT, "mean metric with only the top k kept; with k = 0 everything is ablated"),
        "metric_removed": (FLOAT, "mean metric with the top k ablated"),
        "faithfulness": (
            FLOAT,
            "(metric_kept - metric_kept at k = 0) / (metric_untouched - metric_kept at k = 0); null if undefined",
        ),
        "remaining": (
            FLOAT,
            "the same ratio for metric_removed; null if undefined",
        ),
        "kl": (FLOAT, "KL(untouched || only the top k kept), mean over prompts, nats"),
    },
)
