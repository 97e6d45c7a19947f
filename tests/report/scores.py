"""Tables of synthetic runs: scores, concepts, densities and training history."""

from collections.abc import Sequence

from circuitloom.core.tables import TABLES

TABLE_OF = {table.name: table for table in TABLES}
RUNS = {"tc-a": "transcoder", "tc-b": "transcoder", "sae-a": "sae"}


def evaluation(layers: Sequence[int]) -> dict[str, list[dict]]:
    keys = [(run, layer) for run in RUNS for layer in layers]
    scores = {
        "ce": 2.5,
        "ce_original": 2.25,
        "ce_zero": 4.0,
        "ce_mean": 3.5,
        "delta_ce": 0.25,
        "fvu": 0.125,
        "fvu_median": 0.0625,
        "kl": 0.1,
    }
    runs = [
        {
            "run": run,
            "kind": kind,
            "site_in": "mlp_in",
            "site_out": "mlp_out",
            "act": "topk",
            "width": 8,
            "k": 2 + i,
            "seed": 0,
            "config": '{"skip": false}',
        }
        for i, (run, kind) in enumerate(RUNS.items())
    ]
    runs.append(
        {
            "run": "neurons",
            "kind": "neuron",
            "site_in": "mlp_in",
            "site_out": "mlp_out",
            "act": "gelu",
            "width": 8,
            "config": "{}",
        }
    )
    metric = [
        {
            "run": run,
            "layer": layer,
            "l0": 2.0 + i,
            "alive": 0.75,
            "n_tokens": 100,
            "n_left_out": 2 + layer,
            **scores,
        }
        for i, run in enumerate(RUNS)
        for layer in (*layers, -1)
    ]
    kinds = {
        run: {"kind": kind, "site_out": "mlp_out", "act": "topk", "width": 8} for run, kind in RUNS.items()
    }
    concepts = [
        {
            "run": run,
            "layer": -1,
            "concept": concept,
            "found_layer": 0,
            "feature": 3,
            "f1": f1,
            "n_positive": 9,
        }
        for run in (*RUNS, "neurons")
        for concept, f1 in (("fire", 0.9), ("food", 0.25), ("never", None))
    ]
    history = {
        f"dictionaries/{run}/layer{layer}/history": [
            {
                "run": run,
                "layer": layer,
                "step": 10 * i,
                "loss": 1 / i,
                "fvu": 0.5 / i,
                "dead": 0.0,
                "outliers": 3 * i,
            }
            for i in range(1, 8)
        ]
        for run, layer in keys
    }
    return {
        "corpus/document": [{"split": "train", "document": i, "n_tokens": 10 + i} for i in range(3)],
        "language_model/language_model": [
            {
                "figure": "cross_entropy_every",
                "value": 2.25,
                "unit": "nats per token",
                "meaning": "held-out text",
            },
            {
                "figure": "grammar_entropy",
                "value": 2.0,
                "unit": "nats per token",
                "meaning": "of the grammar",
            },
        ],
        "activations/activation_norm": [
            {
                "site": "mlp_in",
                "layer": layer,
                "n_tokens": 1000,
                "median_norm": 2.0,
                "largest_norm": 562.0,
                "largest_over_median": 281.0,
                "top_share": 0.96,
                "n_over_10": 1,
                "n_over_100": 1,
                "token": "war",
            }
            for layer in layers
        ],
        "model/pretraining": [{"step": i, "loss": 5.0 / i} for i in range(1, 700)],
        "evaluation/run": runs,
        "evaluation/metric": metric,
        "evaluation/pareto": [
            {
                column: value
                for column, value in (row | kinds[row["run"]]).items()
                if column in TABLE_OF["pareto"].columns
            }
            for row in metric
        ],
        "evaluation/density_histogram": [
            {
                "run": run,
                "layer": layer,
                "bin": i,
                "low": i - 5.0 if i else None,
                "high": i - 4.0 if i else None,
                "n_features": 3 * i,
            }
            for run, layer in keys
            for i in range(4)
        ],
        "evaluation/concept_score": concepts,
        **history,
    }
