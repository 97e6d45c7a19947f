"""Results of a study with made-up dictionaries, as an export reads them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from circuitloom.config.dictionaries import output_layers
from circuitloom.core.layout import Layout
from circuitloom.core.tables import METRIC
from circuitloom.core.tables.table import write_table
from circuitloom.dictionaries.cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    LayerDictionary,
    save_cross_layer_dictionary,
)
from circuitloom.dictionaries.dictionary import Dictionary, save_dictionary
from circuitloom.language_model.anatomy import ANATOMY_FILE, Anatomy

D, WIDTH = 8, 20
SAE = {"site_in": "mlp_out", "site_out": "mlp_out"}
LLAMA = Anatomy(
    architecture="LlamaForCausalLM", layers=3, heads=2, blocks="model.layers", mlp="mlp", mlp_projection="down_proj",
    norm_mlp="post_attention_layernorm", parallel=False, norm_mlp_after=None, norm_attention="input_layernorm",
    norm_attention_after=None, attention="self_attn", attention_projection="o_proj", embedding="model.embed_tokens",
    positions=None, norm_final="model.norm", unembedding="lm_head",
)  # fmt: skip


def random_dictionary(
    layer: int = 0, act: str = "relu", skip: bool = False, d: int = D, width: int = WIDTH, **changes: Any
) -> Dictionary:
    """A dictionary with normal weights, the same for each layer, whose decoder rows do not have unit norm."""
    generator = torch.Generator().manual_seed(layer)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    own = {"threshold": {"threshold": random(width).abs() / 2}, "topk": {"k": 3}}.get(act, {})
    extra = {"W_skip": random(d, d)} if skip else {}
    return Dictionary(
        W_enc=random(width, d), b_enc=random(width), W_dec=random(width, d), b_dec=random(d), act=act, layer=layer,
        **(own | extra | changes),
    )  # fmt: skip


def random_transcoder(
    layers: int, act: str = "relu", skip: bool = False, reach: int | None = None, **changes: Any
) -> CrossLayerTranscoder:
    """A cross-layer transcoder whose layers are those of `random_dictionary`, with different decoders."""
    made = []
    for layer in range(layers):
        alone = random_dictionary(layer, act, skip, **changes)
        outputs = tuple(output_layers(range(layers), layer, reach))
        generator = torch.Generator().manual_seed(100 + layer)
        W_dec = torch.randn(alone.width, len(outputs), alone.d_out, generator=generator)
        fields = {**vars(alone), "W_dec": W_dec, "outputs": outputs, "scales": (1.0,) * len(outputs)}
        made.append(CrossLayerDictionary(**fields))
    return CrossLayerTranscoder(made)


def write_results(
    folder: Path,
    dictionaries: Mapping[int, LayerDictionary],
    run: str = "some",
    origin: Mapping[str, str] | None = None,
    anatomy: Anatomy = LLAMA,
    config: Mapping[str, Any] | None = None,
    sources: Mapping[int, str] | None = None,
) -> Path:
    """Write the dictionaries of a run, and what an export reads of a model. Returns the folder.

    `config` are keys of the run besides name and width. `sources` are the files of an imported run by layer.
    """
    layout = Layout(folder)
    for layer, dictionary in dictionaries.items():
        keys = {"name": run, "width": dictionary.width, **(config or {})}
        place, source = layout.dictionary(run, layer), (sources or {}).get(layer)
        if isinstance(dictionary, Dictionary):
            save_dictionary(dictionary, place, keys, source)
        else:
            save_cross_layer_dictionary(dictionary, place, list(dictionaries), keys, source)
    layout.model.mkdir(exist_ok=True)
    (layout.model / "config.json").write_text("{}")
    (layout.model / ANATOMY_FILE).write_text(json.dumps(asdict(anatomy)))
    if origin is not None:
        (layout.model / "source.json").write_text(json.dumps(origin))
    return folder


def write_scores(folder: Path, run: str, layer: int, **values: float) -> None:
    """Write the metrics of one layer."""
    write_table(
        METRIC, [{"run": run, "layer": layer, **values}], Layout(folder).run_evaluation(run, layer, "metric")
    )
