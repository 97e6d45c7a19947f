"""A small synthetic study with any strings as tokens, and the inputs of its report."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from tests.report.scores import RUNS, TABLE_OF, evaluation

from circuitloom.catalog.build import build_catalog
from circuitloom.core.tables import write_table
from circuitloom.report.write import ReportInputs

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
TRACE, CASE, BEHAVIOUR = "war", "caught", "plural"
RESULT = """# {case}: a case about {token}

1 of 2 claims hold. Feature 0/3 fires, 0/4 and 1/2 do not.

| claim | value |
|---|---|
| first | 0.5 |

![picture](picture.png)

Caption: {token}
"""


def make_study(
    folder: Path, tokens: Sequence[str] = ("the",), layers: Sequence[int] = (0, 1)
) -> ReportInputs:
    """Write a study with its catalogue to `folder`: per token, a trace and a case study with that token as all text."""
    tables = evaluation(layers) | _features(tokens[0], layers) | _behaviour()
    for number, token in enumerate(tokens):
        tables |= _circuit(f"{TRACE}{number or ''}", token, layers) | _claims(f"{CASE}{number or ''}", token)
        tables |= _compared(f"{CASE}{number or ''}", token)
    message = f"2 documents of {tokens[0]} are blank"
    tables["corpus/notice"] = [{"subject": "train", "kind": "blank", "count": 2, "message": message}]
    for where, rows in tables.items():
        place, _, name = where.rpartition("/")
        write_table(TABLE_OF[name], rows, folder / place / f"{name}.parquet")
    for number, token in enumerate(tokens):
        case = folder / "cases" / f"{CASE}{number or ''}"
        (case / "result.md").write_text(RESULT.format(case=case.name, token=token))
        for name in ("picture", "other"):
            (case / f"{name}.png").write_bytes(PIXEL + name.encode())
    build_catalog(folder)
    return report_inputs(folder, layers)


def report_inputs(folder: Path, layers: Sequence[int] = (0, 1)) -> ReportInputs:
    """Inputs of the report of the study in `folder`, with synthetic weights and times."""
    dictionaries = [folder / "dictionaries" / run / f"layer{layer}" for run in RUNS for layer in layers]
    for place in [*dictionaries, folder / "model", folder / "corpus" / "train.zarr", folder / "benchmarks"]:
        place.mkdir(parents=True, exist_ok=True)
    for place in dictionaries:
        (place / "weights.safetensors").write_bytes(str(place).encode())
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    tokenizer = {"name": "org/words", "revision": None, "commit": "c0ffee"}
    attributes = json.dumps({"attributes": {"tokenizer": tokenizer}})
    (folder / "corpus" / "train.zarr" / "zarr.json").write_text(attributes)
    head = "s\th:m:s\tmax_rss\n"
    for name, seconds in (("train_a_layer0", "1.5"), ("train_a_layer1", "2.5"), ("write_report", "9")):
        (folder / "benchmarks" / f"{name}.tsv").write_text(f"{head}{seconds}\t0:00:01\t100.5\n")
    return ReportInputs(
        folder=folder,
        config={
            "name": folder.name,
            "corpus": {"source": "chronicle", "context": 16},
            "language_model": {"source": "pretrain", "batch": 4},
        },
        model=folder / "model",
        tokens=[folder / "corpus" / "train.zarr"],
        dictionaries=dictionaries,
        results=sorted(folder.glob("cases/*/result.md")),
        pictures=sorted(folder.glob("cases/*/*.png")),
        case_runs={file.parent.name: "tc-a" for file in folder.glob("cases/*/result.md")},
        benchmarks=folder / "benchmarks",
        rule="write_report",
    )


def _circuit(name: str, token: str, layers: Sequence[int]) -> dict[str, list[dict]]:
    trace = {"trace": name}
    last = len(layers) - 1
    nodes = [
        {
            "kind": "logit",
            "position": 2,
            "token": token,
            "is_root": True,
            "influence": 1.0,
            "probability": 1.0,
        },
        {"kind": "feature", "layer": last, "feature": 5, "position": 2, "token": token, "influence": 0.5},
        {"kind": "feature", "layer": 0, "feature": 3, "position": 1, "token": token, "influence": 0.25},
        {"kind": "error", "layer": 0, "position": 1, "token": token, "influence": 0.125},
        {"kind": "embedding", "position": 1, "token": token, "influence": 0.0625},
        {"kind": "position", "position": 2, "token": token, "influence": 0.03125},
        {"kind": "constant", "influence": 0.0},
    ]
    common = {**trace, "in_graph": True, "is_root": False, "run": "tc-a"}
    edges = [(1, 0, 2.0), (2, 0, -0.5), (2, 1, 1.0), (3, 1, 0.25), (4, 2, 0.75), (5, 0, 0.1), (6, 0, 0.2)]
    tables = {
        "trace": [
            {
                **trace,
                "run": "tc-a",
                "prompt": f"a {token} b",
                "tokens": ["<bos>", token, "b"],
                "target": token,
                "notes": [f"the answer is {token}"],
                "n_edges": 7,
                "n_nodes": 7,
                "replacement_score": 0.5,
                "identity_error": 1e-7,
            }
        ],
        "node": [{**common, "node": i, **row} for i, row in enumerate(nodes)],
        "edge": [
            {
                **trace,
                "source": s,
                "target": t,
                "effect": effect,
                "effect_frozen": effect,
                "effect_free": effect / 2,
            }
            for s, t, effect in edges
        ],
        "path": [
            {**trace, "path": 0, "step": i, "node": node, "effect": 1.0, "n_steps": 1}
            for i, node in enumerate((0, 1))
        ],
        "intervention": [
            {
                **trace,
                "intervention": 0,
                "root": 0,
                "frozen": frozen,
                "kind": "ablate",
                "label": token,
                "features": ["0/3@1"],
                "before": 2.0,
                "after": 1.0,
            }
            for frozen in (True, False)
        ],
    }
    return {f"circuits/{name}/{table}": rows for table, rows in tables.items()}


def _features(token: str, layers: Sequence[int]) -> dict[str, list[dict]]:
    own: dict[int, list[int]] = {}
    for layer, feature in ((len(layers) - 1, 5), (0, 3)):
        own.setdefault(layer, []).append(feature)
    shown = {
        "band": 0,
        "rank": 0,
        "activation": 2.0,
        # the last byte of a character whose first bytes may be at the token's end
        "tokens": [token, "⟨AD⟩" if token.endswith("⟩") else "b", token],
        "activations": [0.5, 0.0, 2.0],
        "position": 2,
        "window_start": 0,
    }
    tables = {}
    for layer, features in own.items():
        keys = [{"run": "tc-a", "layer": layer, "feature": feature, "rank": 0} for feature in features]
        tables[f"features/tc-a/layer{layer}/example"] = [{**key, **shown} for key in keys]
        logits = [{**key, "sign": sign, "token": token} for key in keys for sign in (1, -1)]
        tables[f"features/tc-a/layer{layer}/logit"] = logits
    label = {
        "run": "tc-a",
        "layer": 0,
        "feature": 3,
        "label": f"`{token}` after `a`",
        "source": "rule",
        "f1": 0.75,
    }
    tables["labels/rules/tc-a/layer0/label"] = [label | {"kind": "context", "precision": 0.5, "recall": 0.25}]
    return tables


def _behaviour() -> dict[str, list[dict]]:
    faithful = [
        {
            "behaviour": BEHAVIOUR,
            "basis": basis,
            "ablation": "zero",
            "ranking": "effect",
            "n_kept": k,
            "n_components": 4,
            "n_prompts": 2,
            "faithfulness": k / 4,
            "remaining": 1 - k / 4,
        }
        for basis in ("tc-a", "heads")
        for k in range(5)
    ]
    causal = {
        "behaviour": BEHAVIOUR,
        "basis": "heads",
        "ablation": "zero",
        "kind": "head",
        "layer": 0,
        "component": 1,
    }
    own = {
        "behaviour": BEHAVIOUR, "template": 0, "text": "the {thing} a", "target": "logit b vs c", "n_prompts": 5,
        "share": 0.75, "influence": 0.5,
    }  # fmt: skip
    feature = {"kind": "feature", "run": "tc-a", "layer": 0, "role": 1, "token": "a"}
    edge = {"behaviour": BEHAVIOUR, "template": 0, "effect": 0.5}
    outcome = {"case_study": BEHAVIOUR, "measure": "metric"}
    measured = {
        "untouched": 4.0,
        "features ablated": 0.0,
        "common circuit alone": 3.0,
        "without common circuit": 1.0,
        "random features alone": 0.5,
        "without random features": 3.5,
        "all aggregated features alone": 4.0,
        "without all aggregated features": 0.25,
    }
    return {
        f"circuits/{BEHAVIOUR}/faithfulness": faithful,
        f"circuits/{BEHAVIOUR}/aggregate_node": [
            {**own, "node": 0, "kind": "embedding", "role": 0, "token": "{thing}", "is_common": True},
            {**own, **feature, "node": 1, "feature": 3, "is_common": True},
            {**own, **feature, "node": 2, "feature": 9, "is_common": False},
            {**own, "node": 3, "kind": "root", "role": 1, "token": "a", "is_common": True},
        ],
        f"circuits/{BEHAVIOUR}/aggregate_edge": [
            {**edge, "source": source, "target": target, "is_common": source != 2}
            for source, target in ((0, 1), (1, 3), (2, 3))
        ],
        f"circuits/{BEHAVIOUR}/outcome": [
            {**outcome, "condition": condition, "prompt": i, "half": half, "value": value + i}
            for condition, value in measured.items()
            for i, half in enumerate(("finding", "testing", "testing"))
        ],
        f"circuits/{BEHAVIOUR}/causal": [
            {**causal, "prompt": i, "effect": 0.5 + i, "kl": 0.1} for i in range(2)
        ],
        "circuits/weights/tc-a/layer0/blind": [
            {
                "run": "tc-a",
                "layer": 0,
                "feature": 3,
                "protocol": "plain",
                "precision": 0.5,
                "recall": 0.25,
                "f1": 0.3,
            }
        ],
    }


def _claims(case: str, token: str) -> dict[str, list[dict]]:
    common = {"case_study": case, "relation": "above", "bound": 0.25, "n": 9, "of": "prompts"}
    return {
        f"cases/{case}/claim": [
            {
                **common,
                "claim": "first",
                "statement": f"share of {token}",
                "value": 0.5,
                "low": 0.375,
                "high": 0.625,
                "holds": True,
                "published": 0.5,
            },
            {
                **common,
                "claim": "second",
                "statement": "another",
                "value": 0.25,
                "low": 0.125,
                "high": 0.3,
                "holds": False,
            },
            {**common, "claim": "third", "statement": "unmeasured", "holds": False},
        ]
    }


def _compared(case: str, token: str) -> dict[str, list[dict]]:
    runs = [
        {"case_study": case, "group_name": group, "run": f"{group}-run", "parameters": 100, "features": 24, "l0": l0,
         "fvu": 0.125, "dead": 0.25}
        for group, l0 in (("narrow", 16.0), ("wide", 15.5))
    ]  # fmt: skip
    prompts = [
        {**{key: run[key] for key in ("case_study", "group_name", "run")}, "prompt": 0, "text": token,
         "target": "logits", "n_active": 9, "replacement_score": 0.75, "completeness_score": 0.875}
        for run in runs
    ]  # fmt: skip
    return {f"cases/{case}/compared_run": runs, f"cases/{case}/compared_prompt": prompts}
