"""Generates files from the code: config/README.md, config/schema.json, docs/formats.md, docs/models.md, and the tables
of formats in docs/exchange.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .catalog.queries import Macro, fill_in, macros
from .config import Study, dictionaries
from .config.activations import Activations
from .config.architectures import models_table
from .config.cases import KINDS
from .config.cases.compare import ComparedPrompt
from .config.cases.greater_than import Published
from .config.circuits import Behaviour, BehaviourPrompt, Circuits, FeatureChange, Prompt, WeightsConfig
from .config.corpus import Corpus
from .config.evaluation import Evaluation
from .config.exchange import Exchange
from .config.export_formats import EXPORT_FORMATS, Contents, formats_of
from .config.features import Features
from .config.label_model import LabelModel
from .config.labels import Labels
from .config.language_model import LanguageModel, ModelSizes
from .config.machine import Machine
from .config.resources import JobMemory, JobRuntime, Resources
from .core.tables import TABLES, Table

CONFIG_HEAD = """# Config

Every key of a study: type, default, meaning and unit. `circuitloom document` generates this page from
`lib/circuitloom/config`, and `schema.json`, with which editors complete and check keys.

A study is one YAML file: `config/config.yaml` (quickstart) or a file under `config/studies/`. It is complete: no other
study changes its defaults. `--config 'evaluation={tokens: 50_000}'` changes single keys, also nested ones. A key that
is misspelt, has the wrong type or an impossible value stops the run with one line that names it. `${NAME}` in a path is
an environment variable. Numbers may be written `1e-3` or `60_000_000`.
"""
SWEEPS = """
A sweep has a name and any of these keys; keys under `training` apply to all sweeps that do not set them. Lists expand:
`{kind: [transcoder, sae], k: [8, 16]}` is four runs, which one process trains in one pass over the activations. A run
is named after its keys, such as `tc-topk16-2048` or `sae-relu1e-3-2048-resid_mid`, with a suffix for each other key
that differs from `training`.
"""
CASES = """
## cases

Case studies by name, each of a kind; or the path of a YAML file with case studies, or a list of paths. Paths are
relative to the working directory or to the project. If two files have a case study of the same name, the later file
overrides single keys. `config/cases` has `chronicle.yaml` (for the generated corpus) and files for models of English.
"""
MACHINES = """
`config/machines` has two files with this section. Sources of their numbers:

| number | source |
|---|---|
| GPU of gpu-node-8 | NVIDIA H100 SXM data sheet: 989 TFLOP/s bfloat16 (half of the 1,979 with sparsity), 67 float32 |
| its memory | NVIDIA H100 SXM data sheet: 80 GB, 3.35 TB/s; NVLink 900 GB/s both ways |
| GPU of cluster-512 | NVIDIA H200 SXM data sheet: as the H100, but 141 GB, 4.8 TB/s |
| node | NVIDIA DGX H100 and H200 data sheets: 8 GPUs, 112 cores, 2 TB, 8 x 3.84 TB NVMe, 8 x 400 Gb/s |
| disk of gpu-node-8 | size: data sheet; 25 GB/s write and 50 GB/s read: assumed |
| disk of cluster-512 | assumed: a shared file system of 10 PB, 60 GB/s write, 125 GB/s read |
| download | assumed: 1 and 10 Gb/s |

```sh
snakemake plan --configfile config/studies/pythia-1.4b.yaml config/machines/gpu-node-8.yaml
```
"""
FORMATS_HEAD = """# Tables

Parquet files, each named after its table, with a checksum per page. Generated from `lib/circuitloom/core/tables` by
`circuitloom document`. [design.md](design.md) lists their folders.

The columns `site`, `site_in` and `site_out` name a site of a layer. Exported dictionaries name it by its hook in
TransformerLens:

| site | meaning | hook in `blocks.LAYER` |
|---|---|---|
| `mlp_in` | the MLP's input, after its norm | `mlp.hook_in` |
| `mlp_out` | what the MLP returns | `mlp.hook_out`; also `hook_mlp_out` in models that add it as it is |
| `mlp_added` | what is added to the residual stream, after a norm or factor that follows the MLP | `hook_mlp_out` |
| `attn_added` | what attention adds to the residual stream, after a norm or factor that follows it | `hook_attn_out` |
| `resid_mid` | the residual stream before the MLP | `hook_resid_mid` |
| `resid_pre` | the residual stream before the block | `hook_resid_pre` |

SAELens' format names both hooks of a transcoder. In circuit-tracer's, `feature_output_hook` is `mlp.hook_out` or
`hook_mlp_out`.
"""

MACROS_HEAD = """# Macros

Macros of the catalogue over the views of all tables. Table macros return rows, `FROM name(...)`; scalar macros return a
value, `SELECT name(...)`. Generated from `lib/circuitloom/catalog/queries/macros.sql`. The examples are for quickstart,
as in `circuitloom sql "FROM coactivation(...)"`. If the catalogue is attached to another database, its views need
`SET VARIABLE circuitloom_root = 'results/quickstart/'`, and its macros need `USE`.
"""
MODELS_HEAD = """# Models

Which language models run, which are refused, and how a model is read. The tables are generated from
`lib/circuitloom/config/architectures.py` by `circuitloom document`.

A model is refused when the config is read, from its config.json alone, before anything is made. Tests run a tiny random
model of each architecture below: the cached sites are the model's own, direct effects add up to the pre-activations of
a random transcoder, and blocks, sizes and number of parameters are as the table says. `make test-models` runs the whole
workflow on each, from config to report: 39 architectures and 8 variants of their blocks.

## Where a model comes from

- **A folder** in the Hugging Face layout: `source: path`. Of the weights, `model.safetensors` or the files that
  `model.safetensors.index.json` names are copied. Other copies, such as `consolidated.safetensors`, are not. Pickled
  weights (`pytorch_model*.bin`) are converted.
- **A GGUF file**: `source: path` and a `path` that ends in `.gguf`. Weights are dequantized, and the tokenizer is the
  file's. Transformers determines which GGUF architectures are read.
- **The hub**: `source: hub`. Only files that are needed are downloaded. A folder of the model's name in the working
  directory is not taken.
- **TransformerLens' legacy format** (`NeelNanda/GELU_1L512W_C4_Code` and others), from a folder or the hub.
- **Trained here**: `source: pretrain`, with GPT-2's architecture.

Downloaded code is never run (`trust_remote_code=False`). Quantized checkpoints other than GGUF are refused: name the
model with its original weights. Sizes that config.json does not state are those of transformers' config class.

Weights must be those of the config: missing weights, weights that the config does not use, other shapes and integers
without a quantization are refused, and so is a folder with an adapter (LoRA): merge it first. If the model has a
tokenizer of its own and the corpus was made with another, the terminal and the report say so.

`corpus.tokenizer` is a folder, a GGUF file or a hub name. If there is a folder of this name, it is taken, unless
`corpus.tokenizer_revision` is set. The jobs print which model and which tokenizer were taken; the report shows both.

## Models that run

"Parallel" blocks have no `resid_mid`: attention and MLP read the same residual stream.
"""
EXAMPLES = {
    "run": "tc-topk16-1024",
    "other_run": "sae-topk16-1024",
    "layer": 1,
    "feature": 17,
    "concept": "caught_fire",
    "pattern": "caught",
    "trace": "year_span",
    "case_study": "indirect_object",
}
"""Values that replace the parameters in the examples of macros."""


YAML_NUMBER = r"^[-+]?[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?$"
"""Pattern of numbers that YAML parsers may return as text, such as 1e-3 and 60_000_000."""


def config_page() -> str:
    """Returns the content of config/README.md."""
    parts = [CONFIG_HEAD, *_section("Top level", Study)]
    for source in get_args(get_args(Corpus)[0]):
        parts += _section(f"corpus, source: {_source(source)}", source)
    for source in get_args(get_args(LanguageModel)[0]):
        parts += _section(f"language_model, source: {_source(source)}", source)
    parts += _section("language_model, source: hub, shape", ModelSizes)
    parts += _section("activations", Activations)
    parts += [*_section("training, and each sweep of dictionaries", dictionaries.Run), SWEEPS]
    parts += [*_section("evaluation", Evaluation), *_section("features", Features)]
    parts += [*_section("circuits", Circuits), *_section("circuits.weights", WeightsConfig)]
    parts += _section("circuits.prompts, each prompt", Prompt)
    parts += _section("circuits.prompts, each of a prompt's changes", FeatureChange)
    parts += _section("circuits.behaviours, each behaviour", Behaviour)
    parts += _section("circuits.behaviours, each of a behaviour's prompts", BehaviourPrompt)
    parts += [*_section("labels", Labels), *_section("labels.model", LabelModel)]
    parts += [*_section("machine", Machine), MACHINES, CASES]
    for kind, model in KINDS.items():
        parts += _section(f"cases, kind: {kind}", model)
    parts += _section("cases, kind: greater_than, published", Published)
    parts += _section("cases, kind: compare, each of the prompts", ComparedPrompt)
    parts += _section("exchange", Exchange)
    parts += _section("resources", Resources)
    parts += [*_section("resources.memory", JobMemory), *_section("resources.runtime", JobRuntime)]
    return "\n".join(parts).rstrip() + "\n"


def formats_page() -> str:
    """Returns the content of docs/formats.md."""
    tables = (line for table in TABLES for line in _table(table))
    by_name = sorted(macros(), key=lambda macro: macro.name)
    parts = [FORMATS_HEAD, *tables, MACROS_HEAD, *(_macro(macro) for macro in by_name)]
    return "\n".join(parts).rstrip() + "\n"


def models_page() -> str:
    """Returns the content of docs/models.md."""
    return "\n".join([MODELS_HEAD, *models_table()]) + "\n"


def exchange_page(text: str) -> str:
    """Returns docs/exchange.md, whose content is `text`, with the tables of export formats.

    A table stands between the comments `formats: CONTENTS` and `end of formats`.
    """
    for contents in get_args(Contents):
        start, end = f"<!-- formats: {contents}, by `circuitloom document` -->", "<!-- end of formats -->"
        before, found, after = text.partition(start)
        _, closed, rest = after.partition(end)
        assert found and closed, start
        text = f"{before}{start}\n{_export_formats(contents)}\n{end}{rest}"
    return text


def _export_formats(contents: Contents) -> str:
    """Returns the table of the formats that hold dictionaries, graphs or features."""
    formats = {name: EXPORT_FORMATS[name] for name in formats_of(contents)}
    limited = any(each.represents for each in formats.values())
    names = ["format", *(["holds"] if limited else []), "writes", "read by"]
    rows = [
        [f"`{name}`", *([each.represents] if limited else []), each.files, each.read_by]
        for name, each in formats.items()
    ]
    head, *lines = [f"| {' | '.join(row)} |" for row in (names, *rows)]
    return "\n".join([head, f"|{'---|' * len(names)}", *lines])


def config_schema() -> str:
    """Returns the content of config/schema.json: the JSON schema of a study, for editors."""
    schema = Study.model_json_schema()
    sweep = {
        key: {
            "anyOf": [value, {"type": "array", "items": value}],
            "description": value.get("description", ""),
        }
        for key, value in dictionaries.Run.model_json_schema()["properties"].items()
    }
    schema["$defs"]["Sweep"] = {"type": "object", "additionalProperties": False, "properties": sweep}
    properties = schema["properties"]
    properties["training"] |= {"$ref": "#/$defs/Sweep"}
    properties["dictionaries"] |= {"additionalProperties": {"$ref": "#/$defs/Sweep"}}
    path = {"type": "string"}
    by_name = {key: properties["cases"].pop(key) for key in ("type", "additionalProperties")}
    properties["cases"]["anyOf"] = [by_name, path, {"type": "array", "items": path}]
    return json.dumps({"title": "A study of circuitloom"} | _for_editors(schema), indent=1) + "\n"


def _for_editors(schema: Any, keys_are_names: bool = False) -> Any:
    """Returns the schema for editors, without titles and without defaults that are sections. Numbers may also be text.

    If `keys_are_names`, the keys of `schema` are names that the schema defines, not words of JSON schema.
    """
    if isinstance(schema, list):
        return [_for_editors(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if keys_are_names:
        return {name: _for_editors(each) for name, each in schema.items()}
    result = {}
    for key, value in schema.items():
        if key == "description":
            result[key] = _one_line(value)
        elif key != "title" and not (key == "default" and isinstance(value, dict)):
            result[key] = _for_editors(value, keys_are_names=key in ("properties", "$defs"))
    if result.get("type") in ("integer", "number"):
        outer = {key: result.pop(key) for key in ("description", "default") if key in result}
        return outer | {"anyOf": [result, {"type": "string", "pattern": YAML_NUMBER}]}
    return result


def _one_line(text: str) -> str:
    return " ".join(text.split())


def write_pages(root: Path) -> None:
    """Write all generated files under the project's folder."""
    (root / "config" / "README.md").write_text(config_page())
    (root / "config" / "schema.json").write_text(config_schema())
    (root / "docs" / "formats.md").write_text(formats_page())
    (root / "docs" / "models.md").write_text(models_page())
    exchange = root / "docs" / "exchange.md"
    exchange.write_text(exchange_page(exchange.read_text()))


def _source(model: type[BaseModel]) -> str:
    return get_args(model.model_fields["source"].annotation)[0]


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"\n## {title}\n\n{_one_line(model.__doc__ or '')}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        meaning = _one_line(field.description or "")
        yield f"| `{name}` | {_type(field)} | {_default(field)} | {meaning} |"


def _type(field: FieldInfo) -> str:
    class Holder(BaseModel):
        # the field's metadata has the other types that the field accepts
        value: Annotated[field.annotation, field]  # type: ignore[valid-type]

    schema = Holder.model_json_schema()["properties"]["value"]
    return _schema_type(schema).replace("|", "or")


def _schema_type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        kinds = dict.fromkeys(_schema_type(each) for each in schema["anyOf"])
        # "text or list of text" is clear, "list of text or text" is not
        return " | ".join(sorted(kinds, key=lambda kind: (kind == "null", kind.startswith("list of"))))
    if "oneOf" in schema:
        return "section"
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema['items'])}"
    return {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true | false",
        "object": _by_name(schema),
    }.get(schema.get("type", ""), str(schema.get("type", "section")))


def _by_name(schema: dict[str, Any]) -> str:
    """Returns a phrase for the values of a mapping, such as `numbers by name`. Values of any type give "section",
    because another class checks the keys."""
    values = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
    if not isinstance(values, dict):
        return "section"
    kinds = {"array": "lists by name", "number": "numbers by name"}
    return kinds.get(values.get("type", ""), "sections by name")


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
    return f"## {macro.name}({macro.parameters})\n\n{macro.description}\n\n```sql\n{example}\n```\n"
