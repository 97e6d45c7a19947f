"""What the weights of a run alone say about its features, as tables: de-embeddings, connections, blind predictions."""

from collections.abc import Mapping
from pathlib import Path

from ..attribution.capture import read_weights
from ..config import circuits as config_of
from ..corpus.tokens import Tokens
from ..dictionaries.dictionary import Dictionary
from ..language_model.model import LanguageModel
from .blind_prediction import write_blind
from .connections import find_connections, local_models, mean_effects, write_connections
from .deembedding import read_tokens, write_deembedding


def write_views(
    run: str,
    dictionaries: Mapping[int, Dictionary],
    model: LanguageModel,
    strings: list[str],
    text: Tokens,
    config: config_of.Weights,
    folders: Mapping[int, Path],
) -> None:
    """Write `deembedding`, `connection` and `blind` of each layer into its folder.

    `strings` are the tokens as text, by id; `text` is held out. Raises ValueError where circuits do not go through the
    model, or the dictionaries are no transcoders.
    """

    def paths(table: str) -> dict[int, Path]:
        return {layer: folder / f"{table}.parquet" for layer, folder in folders.items()}

    weights = read_weights(model)
    bare = read_tokens(model, weights, dictionaries.get(0), len(strings))
    write_deembedding(
        run, dictionaries, model, weights, bare, strings, paths("deembedding"), config.tokens, config.heads
    )
    found = {
        layer: find_connections(model, weights, dictionaries, layer, config.connections, config.heads)
        for layer in dictionaries
    }
    prompts = local_models(model, weights, dictionaries, text, config.context_tokens)
    means = mean_effects(prompts, found)
    for layer, path in paths("connection").items():
        write_connections(run, layer, found[layer], means[layer], path)
    write_blind(
        run, dictionaries, model, weights, bare, strings, text, paths("blind"), config.blind_features,
        config.contexts, config.context_tokens, config.scored_tokens, config.batch,
    )  # fmt: skip
