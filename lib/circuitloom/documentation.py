"""Reference pages made from the code: config/README.md of the config's models, docs/formats.md of tables and macros."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .catalog.macros import Macro, macros
from .catalog.questions import fill_in
from .config import Study, dictionaries
from .config.activations import Activations
from .config.cases import KINDS
from .config.cases.greater_than import Published
from .config.circuits import Behaviour, Change, Circuits, Example, Prompt, Weights
from .config.corpus import Corpus
from .config.evaluation import Evaluation
from .config.features import Features
from .config.language_model import LanguageModel, Sizes
from .config.machine import Machine
from .config.resources import JobMemory, JobRuntime, Resources
from .core.tables import TABLES, Table

CONFIG_HEAD = """# Config

Every key of a study: meaning, unit, default. Made from `lib/circuitloom/config` by `python -m circuitloom document`.

A study is one YAML file: `config/config.yaml` (quickstart) or one under `config/studies/`. It stands alone: nothing
of another study leaks into it. `--config 'training={width: 64}'` changes single keys, nested ones too. A key that is
misspelt, of the wrong type or impossible stops the run with one line that names it. `${NAME}` in a path is an
environment variable; numbers may be written `1e-3` or `60_000_000`.
"""
SWEEPS = """
A sweep has a name and any keys of a run; keys under `training` hold for all sweeps that do not set them. Lists expand:
`{kind: [transcoder, sae], k: [8, 16]}` is four runs, trained in one process over one read of the activations. A run is
named after what it is, `tc-topk16-2048` or `sae-relu1e-3-2048-resid_mid`, with a suffix for each other key in which it
differs from `training`.
"""
CASES = """
## cases

Case studies by name, each of a kind; or the path of a YAML file of them, or a list of paths. A file is looked for in
the working directory, then in the project. What is said twice of a case counts as the later file has it, key by key.
`config/cases` has `chronicle.yaml` (the generated corpus), and others for models of English.
"""
MACHINES = """
`config/machines` has two, each a file with this section that is named after a study's. Where their numbers are from:

| number | where it is from |
|---|---|
| GPU of gpu-node-8 | NVIDIA H100 SXM data sheet: 989 TFLOP/s bfloat16 (half of the 1,979 with sparsity), 67 float32 |
| its memory | the same: 80 GB, 3.35 TB/s; NVLink 900 GB/s both ways |
| GPU of cluster-512 | NVIDIA H200 SXM data sheet: as the H100, but 141 GB, 4.8 TB/s |
| node | NVIDIA DGX H100 and H200 data sheets: 8 GPUs, 112 cores, 2 TB, 8 x 3.84 TB NVMe, 8 x 400 Gb/s |
| disk of gpu-node-8 | its size as above; 25 GB/s written and 50 read are assumed |
| disk of cluster-512 | assumed: a shared file system of 10 PB, 60 GB/s written, 125 read |
| download | assumed: 1 and 10 Gb/s |

```sh
snakemake plan --configfile config/studies/pythia-1.4b.yaml config/machines/gpu-node-8.yaml
```
"""
FORMATS_HEAD = """# Tables

Parquet files, each named after its table, with checksums on every page. Made from `lib/circuitloom/tables` by
`python -m circuitloom document`. What lies where is in [design.md](design.md).
"""

MACROS_HEAD = """
# Macros

What the catalogue answers by name, over the views of all tables: most give rows, `FROM name(...)`, some a value,
`SELECT name(...)`. Made from `lib/circuitloom/catalog/macros`; the examples are for quickstart, as in
`python -m circuitloom sql "FROM coactivation(...)"`. Attached to another database, the catalogue needs
`SET VARIABLE circuitloom_root = 'results/quickstart/'` for its views, and `USE` for its macros.
"""
EXAMPLES = {
    "run": "tc-topk16-1024",
    "other_run": "sae-topk16-1024",
    "layer": 1,
    "feature": 17,
    "concept": "caught_fire",
    "pattern": "caught",
    "trace": "year_span",
}
"""What the examples of macros leave open."""


def config_page() -> str:
    """config/README.md."""
    parts = [CONFIG_HEAD, *_section("Top level", Study)]
    for source in get_args(get_args(Corpus)[0]):
        parts += _section(f"corpus, source: {_source(source)}", source)
    for source in get_args(get_args(LanguageModel)[0]):
        parts += _section(f"language_model, source: {_source(source)}", source)
    parts += _section("language_model, source: hub, shape", Sizes)
    parts += _section("activations", Activations)
    parts += [*_section("training, and each sweep of dictionaries", dictionaries.Run), SWEEPS]
    parts += [*_section("evaluation", Evaluation), *_section("features", Features)]
    parts += [*_section("circuits", Circuits), *_section("circuits.weights", Weights)]
    parts += _section("circuits, each of prompts", Prompt)
    parts += _section("circuits, each of a prompt's changes", Change)
    parts += _section("circuits, each of behaviours", Behaviour)
    parts += _section("circuits, each of a behaviour's prompts", Example)
    parts += [*_section("machine", Machine), MACHINES, CASES]
    for kind, model in KINDS.items():
        parts += _section(f"cases, kind: {kind}", model)
    parts += _section("cases, kind: greater_than, published", Published)
    parts += _section("resources", Resources)
    parts += [*_section("resources.memory", JobMemory), *_section("resources.runtime", JobRuntime)]
    return "\n".join(parts).rstrip() + "\n"


def formats_page() -> str:
    """docs/formats.md."""
    tables = (line for table in TABLES for line in _table(table))
    by_name = sorted(macros(), key=lambda macro: macro.name)
    parts = [FORMATS_HEAD, *tables, MACROS_HEAD, *(_macro(macro) for macro in by_name)]
    return "\n".join(parts).rstrip() + "\n"


def write_pages(root: Path) -> None:
    """Write both pages under the project's folder."""
    (root / "config" / "README.md").write_text(config_page())
    (root / "docs" / "formats.md").write_text(formats_page())


def _source(model: type[BaseModel]) -> str:
    return get_args(model.model_fields["source"].annotation)[0]


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"\n## {title}\n\n{(model.__doc__ or '').strip()}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split())
        yield f"| `{name}` | {_type(field)} | {_default(field)} | {meaning} |"


def _type(field: FieldInfo) -> str:
    schema: dict[str, Any] = {}

    class Holder(BaseModel):
        value: field.annotation  # type: ignore[valid-type]

    schema = Holder.model_json_schema()["properties"]["value"]
    return _schema_type(schema).replace("|", "or")


def _schema_type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " | ".join(_schema_type(each) for each in schema["anyOf"])
    if "oneOf" in schema:
        return "section"
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema['items'])}"
    return {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true | false",
        "object": _by_name(schema),
    }.get(schema.get("type", ""), str(schema.get("type", "section")))


def _by_name(schema: dict[str, Any]) -> str:
    values = schema.get("additionalProperties")
    return (
        "lists by name" if isinstance(values, dict) and values.get("type") == "array" else "sections by name"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel) or field.default in ({}, ""):
        return ""
    return f"`{'null' if field.default is None else field.default}`"


def _table(table: Table) -> Iterator[str]:
    yield f"\n## {table.name}\n\n{table.meaning} Key: {', '.join(table.key)}.\n"
    yield "| column | type | meaning |\n|---|---|---|"
    for name, (kind, meaning) in table.columns.items():
        yield f"| `{name}` | {kind} | {meaning.replace('|', chr(92) + '|')} |"


def _macro(macro: Macro) -> str:
    example = fill_in(macro.example, EXAMPLES)
    return f"## {macro.name}({macro.parameters})\n\n{macro.meaning}\n\n```sql\n{example}\n```\n"
