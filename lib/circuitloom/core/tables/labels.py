"""Tables of the labels of features and their scores."""

import pyarrow as pa

from .table import FEATURE_INDEX, FLOAT, INT, LAYER, RUN_NAME, STRING, Table

_INTERVAL = "end of the 95 % interval, with documents as the unit of sampling"


def _score(name: str, meaning: str) -> dict[str, tuple[pa.DataType, str]]:
    """Returns the columns of a score and its interval."""
    return {
        name: (FLOAT, meaning),
        f"{name}_low": (FLOAT, f"lower {_INTERVAL}"),
        f"{name}_high": (FLOAT, f"upper {_INTERVAL}"),
    }


LABEL = Table(
    "label",
    "Labels of features: short texts that say what a feature fires on, with scores on documents from which no label "
    "was learned. A label predicts at each token whether the feature fires there. All activations above 0 count. A "
    "feature has a row per source; `labels` and `search_labels` give the one with the highest F1. A score is null if "
    "it was not measured or is 0 / 0.",
    ("run", "layer", "feature", "source"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "label": (STRING, "the label; tokens are written in backticks"),
        "source": (
            STRING,
            "`rule`: the best of many short descriptions; `frequent`: the token on which it fires most often, for "
            "comparison; `planted`: the planted concept that fits best (generated text), for comparison; else the name "
            "of the language model that wrote the label",
        ),
        "kind": (
            STRING,
            "of a rule: `token`; `class` of tokens; `context`: tokens before; `output`: promoted next tokens; "
            "`position`; `n-gram`; `conjunction`; `upstream`: inherited; `always`; `none`: nothing describes the "
            "feature, and the scores are those of the best attempt. Of a planted concept: `concept`. Of a language "
            "model: `text`",
        ),
        "precision": (FLOAT, "share of the predicted tokens on which the feature fires"),
        "recall": (FLOAT, "share of the tokens on which the feature fires that are predicted"),
        **_score("f1", "detection: harmonic mean of precision and recall"),
        **_score(
            "balanced_accuracy",
            "detection: mean of the recall and of the share of tokens without the feature that are not predicted; "
            "0.5 is chance",
        ),
        **_score(
            "hard_accuracy",
            "the same, but the tokens without the feature are those on which one of the features that are most similar "
            "by the tokens they fire on fires",
        ),
        **_score(
            "fuzzing",
            "the same, but the tokens without the feature are those near a token on which it fires, in its document",
        ),
        **_score(
            "output",
            "share of contexts in which doubling the feature raises the log probability of the tokens that it "
            "promotes; 0.5 is chance. Measured here for features that a language model labels; that of a rule's label "
            "is in the table `label_output`",
        ),
        "promoted": (
            pa.list_(STRING),
            "the next tokens that a rule's label names, without the space before them; null if it names none",
        ),
        "f1_learning": (FLOAT, "F1 on the documents from which the label was learned"),
        "n_tokens": (INT, "number of scoring tokens on which the feature fires"),
        "n_judged": (
            INT,
            "number of scoring tokens that were judged: all, or of a language model a balanced sample, whose F1 is "
            "weighted back to the shares of all tokens",
        ),
    },
)

LABEL_OUTPUT = Table(
    "label_output",
    "Output scores of labels by rules that name next tokens (``says `to` ``): whether the feature, doubled, raises the "
    "probability of these tokens. The macro `labels` has them, too.",
    ("run", "layer", "feature"),
    {
        "run": RUN_NAME,
        "layer": LAYER,
        "feature": FEATURE_INDEX,
        "label": (STRING, "the label"),
        **_score(
            "output",
            "share of contexts in which doubling the feature raises the log probability of the tokens in `promoted`, "
            "together, as the next token; 0.5 is chance",
        ),
    },
)
