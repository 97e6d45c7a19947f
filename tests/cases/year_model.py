"""A model with weights set by hand to do greater-than, and its exact transcoders.

MLP 0 maps each year's embedding to its own direction, head 1.0 copies that from the start year to the last token, and
MLP 1 promotes the later years there. Head 1.1 and attention 0 do nothing.
"""

from pathlib import Path

import torch
from torch import nn

from circuitloom.cases.context import CaseContext
from circuitloom.config.cases import GreaterThanCase
from circuitloom.corpus.tokenizer import word_tokenizer
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.model import LanguageModel, load_model

YEARS = tuple(range(20, 27))
N = len(YEARS)
WORDS = ("the", "war", "siege", "from", "to", "c", *map(str, YEARS))
TEMPLATE = "the {noun} from c {year} to c"
LENGTH, PLACE = 8, 5
"""Tokens of a prompt, BOS included, and position of the start year."""
D_MODEL = 48
YEAR, MIDDLE, COPY, OUTPUT = (slice(start, start + N) for start in range(0, 4 * N, N))
"""Dimensions of a year's embedding, MLP 0's output, head 1.0's output, and the unembedding's input."""
IS_YEAR, IS_LAST = 4 * N, 4 * N + 1
CARRIER = (1, 0)


def make_case(**keys) -> GreaterThanCase:
    """A case with two prompts for every start year that has a later year."""
    given = {
        "template": TEMPLATE, "slots": {"noun": ["war", "siege"]}, "first": YEARS[0], "last": YEARS[-2],
        "features": 2, "resamples": 50, "traced": 4, "width": 8, **keys,
    }  # fmt: skip
    return GreaterThanCase.model_validate({"kind": "greater_than", **given})


def open_year_model(folder: Path) -> CaseContext:
    """Context of the model and its exact transcoders."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = word_tokenizer(WORDS)
    config = GPT2Config(
        vocab_size=len(WORDS) + 1, n_positions=16, n_embd=D_MODEL, n_layer=2, n_head=2, n_inner=N,
        activation_function="relu", bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    module = GPT2LMHeadModel(config)
    with torch.no_grad():
        _set_weights(module)
    module.save_pretrained(folder)
    model = load_model(folder, "float32", device="cpu")
    return CaseContext(model, tokenizer, {"exact": {layer: exact(model, layer) for layer in range(2)}}, 16)


def _set_weights(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    transformer, year = module.transformer, torch.eye(N)
    embedding = transformer.wte.weight
    # words other than years differ in dimensions that nothing reads
    embedding[:, IS_LAST + 1 :] = torch.randn(
        len(embedding), D_MODEL - IS_LAST - 1, generator=torch.Generator().manual_seed(0)
    )
    embedding[-N:, IS_LAST + 1 :] = 0
    embedding[-N:, YEAR] = 4 * year
    embedding[-N:, IS_YEAR] = 4
    transformer.wpe.weight[LENGTH - 1, IS_LAST] = 4
    first, second = transformer.h
    first.mlp.c_fc.weight[YEAR] = year
    first.mlp.c_fc.bias.fill_(-1)
    # of different sizes, so that features have an order
    first.mlp.c_proj.weight[:, MIDDLE] = torch.diag(torch.linspace(1.5, 2.5, N))
    query, key, value = (slice(start, start + D_MODEL // 2) for start in (0, D_MODEL, 2 * D_MODEL))
    attention = second.attn.c_attn.weight
    attention[IS_LAST, query][0] = 10
    attention[IS_YEAR, key][0] = 10
    attention[MIDDLE, value.start : value.start + N] = year
    second.attn.c_proj.weight[:N, COPY] = 4 * year
    second.mlp.c_fc.weight[COPY] = year
    second.mlp.c_fc.bias.fill_(-1)
    later = torch.ones(N, N).triu(1)
    second.mlp.c_proj.weight[:, OUTPUT] = later - (1 - later)
    module.lm_head.weight[-N:, OUTPUT] = 8 * year


def exact(model: LanguageModel, layer: int) -> Dictionary:
    """A transcoder whose features are the neurons of the layer's MLP."""
    mlp = model.mlp(layer)
    norm = mlp.c_proj.weight.norm(dim=1)
    return Dictionary(
        (mlp.c_fc.weight * norm).T.contiguous(), mlp.c_fc.bias * norm, mlp.c_proj.weight / norm[:, None],
        mlp.c_proj.bias, "relu", layer=layer,
    )  # fmt: skip
