"""Random rows of the tables that named queries read."""

from pathlib import Path
from typing import Any

import numpy as np

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.core.tables import TABLES, write_table

Rows = list[dict[str, Any]]
TABLE_OF = {table.name: table for table in TABLES}
RUNS = {"tc-b": "transcoder", "tc-a": "transcoder", "sae": "sae", "neurons": "neuron"}
LAYERS = (0, 1, 2)
TRACES = ("first", "second")
BEHAVIOURS = ("year", "plural")
KINDS = ("logit", "logit", "feature", "feature", "feature", "error", "embedding", "position", "constant")
N_NODES = 40


def make_tables() -> dict[str, Rows]:
    """Rows by folder and table. All traces and runs have the same node numbers, layers and features."""
    random = np.random.default_rng(0)

    def number() -> float:
        return float(random.normal())

    runs = [
        {
            "run": run,
            "kind": kind,
            "site_in": "mlp_in",
            "site_out": "mlp_out",
            "act": "topk",
            "width": 8,
            "k": 4,
        }
        for run, kind in RUNS.items()
    ]
    columns = ("l0", "fvu", "delta_ce", "ce_recovered_zero", "kl", "alive", "density_over_10_percent")
    metrics = [
        {"run": run, "layer": layer, **{column: number() for column in columns}, "fvu_median": (layer + 2) / 8,
         "n_left_out": (layer + 1) * (run == "tc-a")}
        for run in ("tc-a", "tc-b", "sae") for layer in (*LAYERS, -1)
    ]  # fmt: skip
    metrics[0]["fvu"] = metrics[3]["kl"] = None
    concepts = [
        {"run": run, "layer": layer, "concept": f"concept {i}", "found_layer": 0, "feature": i, "f1": f1}
        for run in (*RUNS, "residual") for layer in (*LAYERS, -1)
        for i, f1 in enumerate([0.8, 0.5, None, *random.random(7).tolist()])
    ]  # fmt: skip
    densities = [
        {"run": run, "layer": layer, "bin": i, "low": i - 5.0 if i else None, "high": i - 4.0 if i else None,
         "n_features": int(random.integers(0, 3))}
        for run in ("tc-a", "tc-b", "unknown") for layer in LAYERS for i in range(9)
    ]  # fmt: skip
    connections = [
        {"run": run, "layer": 1 + source % 2, "feature": feature, "via": via, "source_layer": source % 2,
         "source_feature": source, "weight": float(random.integers(-50, 50)) / 8, "mean_effect": number(),
         "mean_effect_when_active": None if source % 7 == 0 else number()}
        for run in ("tc-a", "tc-b") for feature in range(20) for source in range(20) for via in ("direct", "head 0.1")
    ]  # fmt: skip
    claims = [
        {"case_study": case, "claim": f"claim {i}", "holds": bool(random.integers(0, 2))}
        for case in ("b", "a") for i in range(7)
    ]  # fmt: skip
    figures = [
        {"figure": figure, "value": value, "unit": f"unit of {figure}", "meaning": f"meaning of {figure}"}
        for figure, value in (("parameters", 1234.0), ("cross_entropy", 3.5), ("cross_entropy_every", 3.25))
    ]
    tables = {
        "evaluation/run": runs, "evaluation/metric": metrics, "evaluation/concept_score": concepts,
        "evaluation/density_histogram": densities, "circuits/weights/tc-a/layer1/connection": connections,
        "cases/a/claim": claims, "language_model/language_model": figures,
    }  # fmt: skip
    for trace in TRACES:
        tables |= {f"circuits/{trace}/{name}": rows for name, rows in make_trace(trace, random).items()}
    others = make_history(random) | make_behaviours(random) | make_features(random)
    return tables | others | make_comparisons(random)


def make_comparisons(random: np.random.Generator) -> dict[str, Rows]:
    """Scores of groups with different numbers of runs, in two case studies. Some values are missing."""
    runs, prompts = [], []
    for case in ("y", "x"):
        for group, n_runs in (("plt", 2), ("clt", 3)):
            for i in range(n_runs):
                keys = {"case_study": case, "group_name": group, "run": f"{group} {i}"}
                numbers = {name: float(random.normal()) for name in ("l0", "fvu", "dead", "concept_f1")}
                precision = None if i == 0 else float(random.random())
                runs.append(
                    {
                        **keys,
                        "parameters": int(random.integers(100)),
                        **numbers,
                        "delta_ce": None if case == "x" else float(random.normal()),
                        "source_precision": precision,
                        "source_recall": 0.5,
                    }
                )
                for prompt in range(3):
                    scores = {
                        name: None if random.random() < 0.2 else float(random.random())
                        for name in ("edge_correlation", "effect_correlation", "through", "around")
                    }
                    prompts.append(
                        {
                            **keys,
                            "prompt": prompt,
                            "replacement_score": float(random.random()),
                            "completeness_score": float(random.random()),
                            **scores,
                        }
                    )
    return {"cases/x/compared_run": runs, "cases/x/compared_prompt": prompts}


def make_history(random: np.random.Generator) -> dict[str, Rows]:
    """Training curves of different lengths, one of a run that is not in the table of runs."""
    return {
        f"dictionaries/{run}/layer{layer}/history": [
            {"run": run, "layer": layer, "step": 10 * i,
             **{name: float(random.normal()) for name in ("loss", "fvu", "l0", "dead")}, "outliers": i * (run == "sae")}
            for i in range(n)
        ]
        for (run, layer), n in {
            ("tc-a", 0): 130, ("tc-a", 1): 61, ("tc-a", 2): 60, ("tc-b", 1): 7, ("sae", 0): 121, ("unknown", 0): 9,
        }.items()
    }  # fmt: skip


def make_behaviours(random: np.random.Generator) -> dict[str, Rows]:
    """Ablations and faithfulness of two behaviours. Effects are multiples of 1/8, so that means are often tied."""
    causal, faithfulness = [], []
    for behaviour in BEHAVIOURS:
        for basis in ("heads", "tc-a"):
            for ablation in ("zero", "mean"):
                keys = {"behaviour": behaviour, "basis": basis, "ablation": ablation}
                for prompt, layer, component in np.ndindex(3, 2, 6):
                    row = {**keys, "prompt": prompt, "layer": layer, "component": component}
                    effect = None if random.random() < 0.1 else int(random.integers(-12, 13)) / 8
                    causal.append({**row, "position": None, "effect": effect, "kl": float(random.random())})
                    causal.append({**row, "position": prompt, "effect": 99.0, "kl": 99.0})
                for ranking in ("effect", "attribution"):
                    faithfulness += [
                        {**keys, "ranking": ranking, "n_kept": k, "n_components": 12, "n_prompts": 3,
                         "faithfulness": float(random.normal()) if k else None, "remaining": float(random.normal())}
                        for k in (8, 0, 2)
                    ]  # fmt: skip
    return {"circuits/behaviours/causal": causal, "circuits/behaviours/faithfulness": faithfulness}


def make_features(random: np.random.Generator) -> dict[str, Rows]:
    """Examples on tokens of a small vocabulary, and logit effects; runs and layers have the same feature numbers."""
    tables: dict[str, Rows] = {
        "corpus/token": [
            {"sequence": i, "position": j, "document": i, "token_id": number, "token": f"t{number}"}
            for (i, j), number in np.ndenumerate(random.integers(6, size=(8, 16)))
        ]
    }  # fmt: skip
    for run in ("tc-a", "tc-b"):
        for layer in LAYERS:
            keys = [{"run": run, "layer": layer, "feature": feature} for feature in range(5)]
            tables[f"features/{run}/layer{layer}/example"] = [
                {**key, "band": band, "rank": rank, "sequence": int(random.integers(8)),
                 "position": int(random.integers(16)), "activation": 1.0}
                for key in keys for band in (0, 1) for rank in range(12)
            ]  # fmt: skip
            tables[f"features/{run}/layer{layer}/logit"] = [
                {**key, "sign": sign, "rank": rank, "token_id": 0, "token": f"{run}{layer}{key['feature']}{sign}{rank}"}
                for key in keys for sign in (1, -1) for rank in random.permutation(5).tolist()
            ]  # fmt: skip
    return tables


def make_trace(trace: str, random: np.random.Generator) -> dict[str, Rows]:
    nodes = []
    for i in range(N_NODES):
        # the same node number is of another kind in the other trace
        kind = KINDS[i] if i < 2 else KINDS[2 + (i + len(trace)) % (len(KINDS) - 2)]
        feature = {"layer": i % 3, "feature": i} if kind == "feature" else {}
        layer = {"layer": 1} if kind == "error" else {}
        place = {} if kind == "constant" else {"position": i % 5, "token": f"{trace}{i % 5}"}
        nodes.append(
            {"trace": trace, "node": i, "kind": kind, "is_root": i < 2, "in_graph": True, **feature, **layer, **place}
        )  # fmt: skip
    pairs = {tuple(random.choice(N_NODES, 2, replace=False).tolist()) for _ in range(150)}
    edges = []
    for source, target in sorted(pairs):
        constant = nodes[source]["kind"] == "constant"
        effect, frozen, free = random.normal(size=3).tolist()
        edges.append(
            {"trace": trace, "source": source, "target": target, "effect": effect,
             "effect_frozen": None if constant else frozen, "effect_free": None if constant else free}
        )  # fmt: skip
    interventions = []
    for i in range(20):
        label = f"node {2 + i}" if i % 2 else f"group {i}"
        for root in (0, 1):
            before, frozen, free = random.normal(size=3).tolist()
            common = {"trace": trace, "intervention": i, "root": root, "kind": "ablate", "label": label,
                      "features": [f"0/{j}@1" for j in range(1 + i)], "strength": None, "before": before}  # fmt: skip
            interventions.append({**common, "frozen": False, "after": free})
            if i != 4:
                interventions.append({**common, "frozen": True, "after": frozen})
    row = {"trace": trace, "run": "tc-a", "identity_error": float(random.random()) * 1e-6}
    attention = []
    for edge in range(6):
        score, mean, pattern, contribution = random.normal(size=4).tolist()
        place = {"trace": trace, "layer": edge % 2, "head": edge // 2, "query": 4, "key": edge % 3, "score": score,
                 "mean_score_plain": mean, "pattern": pattern, "contribution": contribution}  # fmt: skip
        rows = [
            {**place, "kind": kind, "rank": rank, "effect": float(random.normal()),
             "query_source": None if kind == "key" else f"q{rank}",
             "key_source": None if kind == "query" else f"k{rank}"}
            for kind in ("key", "pair", "query") for rank in (2, 0, 1)
        ]  # fmt: skip
        attention += [rows[i] for i in random.permutation(len(rows))]
    return {
        "node": nodes,
        "edge": edges,
        "intervention": interventions,
        "trace": [row],
        "attention_score": attention,
    }


def write_catalog(folder: Path, tables: dict[str, Rows]) -> CatalogClient:
    for place, rows in tables.items():
        write_table(TABLE_OF[place.rpartition("/")[2]], rows, folder / f"{place}.parquet")
    build_catalog(folder)
    return CatalogClient(folder)
