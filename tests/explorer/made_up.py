"""A study of synthetic tables with hostile strings: HTML, scripts, control characters, SQL."""

from pathlib import Path
from typing import Any

from circuitloom.catalog.build import build_catalog
from circuitloom.core.tables import TABLES, write_table

HOSTILE = (
    "<img src=x onerror=window.hacked=1>", "</script><script>window.hacked=2</script>",
    "\"onmouseover='window.hacked=3'",
    "\n", "\x00\x1b[31m", "[link](javascript:window.hacked=4)", "<b>bold</b>", " ", "{{7*7}}",
    "日本", "\u202eabc", "&lt;",
)  # fmt: skip
RUN, SAE, NEURONS, LAYERS, WIDTH = "tc-topk8-300", "sae-topk8-300", "neurons", (0, 1), 300
TRACE, PLAIN_TRACE = "it's <i>hostile</i>", "plain"
SCHEMAS = {table.name: table for table in TABLES}
Rows = list[dict[str, Any]]


def token(number: int) -> str:
    return HOSTILE[number % len(HOSTILE)]


def make_study(folder: Path) -> Path:
    """Write tables and catalogue to `folder`."""
    for name, rows in _corpus().items():
        _write(folder / "corpus", name, rows)
    for name, rows in _evaluation().items():
        _write(folder / "evaluation", name, rows)
    figure = {"figure": "cross_entropy", "value": 1.25, "unit": "nats", "meaning": token(0)}
    _write(folder / "language_model", "language_model", [figure])
    for run in (RUN, SAE, NEURONS):
        for layer in LAYERS:
            for name, rows in feature_tables(run, layer).items():
                _write(folder / "features" / run / f"layer{layer}", name, rows)
    for layer in LAYERS:
        for name, rows in _weights(layer).items():
            _write(folder / "circuits" / "weights" / RUN / f"layer{layer}", name, rows)
        history = [
            {
                "run": RUN,
                "layer": layer,
                "step": step,
                "loss": 1 / step,
                "fvu": 1 / step,
                "l0": 8.0,
                "dead": 0.0,
            }
            for step in (1, 10, 20)
        ]
        _write(folder / "dictionaries" / RUN / f"layer{layer}", "history", history)
    for trace, place in ((TRACE, "hostile"), (PLAIN_TRACE, PLAIN_TRACE)):
        for name, rows in _circuit(trace).items():
            _write(folder / "circuits" / place, name, rows)
    _write(folder / "labels" / "rules" / RUN / "layer0", "label", labels())
    claim = {"case_study": token(1), "claim": "acts", "statement": token(0), "value": 0.5, "low": 0.4, "high": 0.6,
             "relation": "above", "bound": 0.2, "holds": True, "n": 9, "of": "prompts"}  # fmt: skip
    _write(
        folder / "cases" / "caught",
        "claim",
        [claim, claim | {"claim": "fails", "bound": 0.5, "holds": False}],
    )
    build_catalog(folder)
    return folder


def _write(folder: Path, name: str, rows: Rows) -> None:
    write_table(SCHEMAS[name], rows, folder / f"{name}.parquet")


def _corpus() -> dict[str, Rows]:
    rows = [
        {"sequence": s, "position": p, "document": s, "token_id": p, "token": token(s + p)}
        for s in range(8) for p in range(32)
    ]  # fmt: skip
    return {"token": rows}


def _evaluation() -> dict[str, Rows]:
    runs = [
        {"run": RUN, "kind": "transcoder", "site_in": "mlp_in", "site_out": "mlp_out"},
        {"run": SAE, "kind": "sae", "site_in": "mlp_out", "site_out": "mlp_out"},
    ]
    runs = [run | {"act": "topk", "width": WIDTH, "k": 8, "seed": 0, "config": "{}"} for run in runs]
    scores = {"l0": 8.0, "fvu": 0.1, "ce": 1.3, "ce_original": 1.25, "ce_zero": 2.0, "ce_mean": 2.1, "alive": 0.9,
              "ce_recovered_zero": 0.93}  # fmt: skip
    metric = [{"run": run["run"], "layer": layer, **scores} for run in runs for layer in (*LAYERS, -1)]
    pareto = [
        {name: run[name] for name in ("run", "kind", "site_out", "act", "width", "k")} | {"layer": layer, **scores}
        for run in runs for layer in (*LAYERS, -1)
    ]  # fmt: skip
    density = [
        {"run": run["run"], "layer": layer, "bin": b, "low": -4.0 + b, "high": -3.0 + b, "n_features": 10 * b}
        for run in runs for layer in LAYERS for b in range(4)
    ]  # fmt: skip
    concept = [
        {"run": RUN, "layer": layer, "concept": token(6), "rank": 0, "feature": 7, "sign": 1, "threshold": 0.5,
         "precision": 0.9, "recall": 0.8, "f1": 0.85, "f1_choosing": 0.8, "n_positive": 40}
        for layer in LAYERS
    ]  # fmt: skip
    return {
        "run": runs,
        "metric": metric,
        "pareto": pareto,
        "density_histogram": density,
        "feature_concept": concept,
    }


def feature_tables(run: str, layer: int) -> dict[str, Rows]:
    """Feature tables of a run and layer: feature i fires on (37 i) mod 200 tokens."""
    own = {"run": run, "layer": layer}
    tables: dict[str, Rows] = {
        name: [] for name in ("feature", "histogram", "example", "logit", "activation", "code")
    }
    for feature in range(WIDTH):
        at = own | {"feature": feature}
        firing = (feature * 37) % 200
        numbers = {"n_tokens": firing, "density": firing / 200, "alive": firing > 0, "decoder_norm": 1.0}
        numbers |= {
            "encoder_norm": 1 + feature / 100,
            "bias": -0.5,
            "max_activation": 2.0 if firing else None,
        }
        tables["feature"].append(at | numbers | {"mean_activation": 1.0, "rms_activation": 1.1})
        for rank in range(3):
            tables["logit"].append(
                at | {"sign": 1, "rank": rank, "token_id": 1, "token": token(feature + rank), "effect": 0.5}
            )
            tables["logit"].append(
                at | {"sign": -1, "rank": rank, "token_id": 1, "token": token(rank), "effect": -0.25}
            )
        if not firing:
            continue
        tables["histogram"] += [
            at | {"bin": b, "low": b / 5, "high": (b + 1) / 5, "n_tokens": 9 - b} for b in range(9)
        ]
        for band in (0, 1):
            window = [token(feature % 8 + 2 + i) for i in range(6)]
            example = {"band": band, "rank": 0, "sequence": feature % 8, "position": 5, "activation": 2.0,
                       "window_start": 2, "tokens": window, "activations": [0.0, 0.5, 1.0, 2.0, 0.0, 0.0],
                       "band_low": 0.0, "band_high": 2.0, "band_share": 1.0}  # fmt: skip
            tables["example"].append(at | example)
        place = {"sequence": feature % 8, "position": 1 + feature % 31}
        tables["activation"].append(at | place | {"activation": 2.0})
    firing_at: dict[tuple[int, int], list[int]] = {}
    for row in tables["activation"]:
        firing_at.setdefault((row["sequence"], row["position"]), []).append(row["feature"])
    tables["code"] = [
        own
        | {
            "sequence": s,
            "position": p,
            "n_features": len(f),
            "packed": b"".join(i.to_bytes(2, "big") for i in f),
        }
        for (s, p), f in sorted(firing_at.items())
    ]
    return tables


def labels() -> Rows:
    """Labels of layer 0: feature 7 + 2 i fires on token i, with an F1 of 0.9 - i / 10; nothing describes feature 8."""
    own = {"run": RUN, "layer": 0, "source": "rule", "kind": "token"}
    rows = [
        own | {"feature": 7 + 2 * i, "label": f"`{token(i)}` after `b`", "f1": 0.9 - i / 10, "f1_low": 0.25,
               "f1_high": 0.95, "precision": 0.5, "n_tokens": 9}
        for i in range(4)
    ]  # fmt: skip
    undescribed = own | {"feature": 8, "label": "nothing describes it", "kind": "none", "f1": 0.1}
    return [
        *rows,
        rows[0] | {"source": "frequent", "label": "the most frequent token", "f1": 0.99},
        undescribed,
    ]


def _weights(layer: int) -> dict[str, Rows]:
    own = {"run": RUN, "layer": layer}
    read = [
        own | {"feature": f, "via": via, "sign": sign, "rank": 0, "token_id": 0, "token": token(f),
               "effect": 0.1 * sign}
        for f in range(WIDTH) for via in ("direct", "layer0", "head 0.1") for sign in (1, -1)
    ]  # fmt: skip
    connection = [
        own | {"feature": f, "via": "direct", "rank": 0, "source_layer": 0, "source_feature": (f + 1) % WIDTH,
               "weight": 0.5, "mean_effect": 0.1, "mean_effect_when_active": 0.2 if f % 2 else None, "n_active": 3}
        for f in range(WIDTH if layer else 0)
    ]  # fmt: skip
    blind = [own | {"feature": 7, "protocol": "plain", "tokens": list(HOSTILE), "place": "here", "f1": 0.5}]
    return {"deembedding": read, "connection": connection, "blind": blind}


def _circuit(name: str) -> dict[str, Rows]:
    own = {"trace": name}
    trace = own | {"run": RUN, "prompt": " ".join(HOSTILE[:3]), "tokens": list(HOSTILE), "target": "logits",
                   "dtype": "float32", "n_active": 20, "n_nodes": 26, "n_edges": 60, "identity_error": 1e-7,
                   "replacement_score": 0.8, "completeness_score": 0.9, "completeness_strict": 0.8,
                   "frozen_error": 1e-7, "free_correlation": 0.7, "seconds": 1.0}  # fmt: skip
    nodes: Rows = []

    def add(kind: str, position: int | None, **rest: Any) -> int:
        text = None if position is None else token(position)
        nodes.append(own | {"node": len(nodes), "kind": kind, "in_graph": True, "is_root": False, "position": position,
                            "token": text} | rest)  # fmt: skip
        return len(nodes) - 1

    features = [
        add("feature", 1 + i % 11, run=RUN, layer=i % 2, feature=7 + i, activation=1.0, value=1.0, remainder=0.1,
            influence=0.2 / (1 + i))
        for i in range(10)
    ]  # fmt: skip
    errors = [add("error", 3, run=RUN, layer=0, influence=0.01)]
    embeddings = [add("embedding", i, influence=0.02) for i in range(len(HOSTILE))]
    constant = add("constant", None, influence=0.0)
    roots = [
        add("logit", 11, is_root=True, value=2.0, probability=0.4),
        add("logit", 11, is_root=True, value=1.0),
    ]
    edges: Rows = []
    for sources, targets in ((embeddings, features), (features, roots), (errors, roots), ([constant], roots)):
        for i, source in enumerate(sources):
            for target in targets:
                effect = (-1) ** i * 0.5 / (1 + i)
                measured = None if source == constant else effect
                edges.append(own | {"source": source, "target": target, "effect": effect, "effect_frozen": measured,
                                    "effect_free": measured})  # fmt: skip
    path = [
        own | {"path": 0, "step": s, "node": n, "effect": 1.0, "n_steps": 1}
        for s, n in ((0, roots[0]), (1, 0))
    ]
    change = own | {"intervention": 0, "root": roots[0], "frozen": True, "kind": "ablate", "label": "all",
                    "before": 2.0, "features": ["0/7@1"], "after": 1.0}  # fmt: skip
    attention: Rows = []
    for layer, contribution in ((1, 0.5), (0, -0.7)):
        edge = own | {"layer": layer, "head": 1, "query": 11, "key": 3, "score": 2.0, "mean_score": 0.5,
                      "mean_score_plain": 0.4, "pattern": 0.8, "contribution": contribution}  # fmt: skip
        query = {
            "query_source": f"0/7 {token(11)}",
            "query_kind": "feature",
            "query_layer": 0,
            "query_feature": 7,
        }
        sides = query | {"key_source": f"embedding {token(3)}", "key_kind": "embedding"}
        attention += [
            edge | {"kind": "pair", "rank": 0, "effect": 1.25 + layer, **sides},
            edge | {"kind": "query", "rank": 0, "effect": 0.5, "relative_effect_plain": 0.3, "effect_frozen": 0.5,
                    "effect_free": 0.4, "pattern_free": 0.1, "root_free": 0.2, **query},
            edge | {"kind": "key", "rank": 0, "effect": 0.7, "relative_effect_plain": 0.6,
                    "key_source": sides["key_source"]},
        ]  # fmt: skip
    return {"trace": [trace], "node": nodes, "edge": edges, "path": path, "intervention": [change],
            "attention_score": attention}  # fmt: skip
