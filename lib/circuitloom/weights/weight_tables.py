"""Write the weight tables of a run of transcoders: de-embeddings, connections and blind predictions."""

from collections.abc import Mapping
from pathlib import Path

from ..attribution.capture import read_weights
from ..attribution.linearized_model import linearize_sequences
from ..config.circuits import WeightsConfig
from ..corpus.token_arrays import count_sequences
from ..corpus.tokens import Tokens
from ..dictionaries.cross_layer import LayerDictionary
from ..language_model.model import LanguageModel
from .blind_prediction import write_blind_predictions
from .connections import find_connections, mean_effects, write_connections
from .deembedding import embed_vocabulary, write_deembedding


def write_weight_tables(
    run: str,
    dictionaries: Mapping[int, LayerDictionary],
    model: LanguageModel,
    strings: list[str],
    text: Tokens,
    config: WeightsConfig,
    folders: Mapping[int, Path],
) -> None:
    """Write the tables `deembedding`, `connection` and `blind` of each layer into folders[layer].

    `strings` are the vocabulary's tokens as text. `text` is held-out text. Raises ValueError if the model's
    architecture is not supported, or if a dictionary is not a transcoder.
    """

    def paths(table: str) -> dict[int, Path]:
        return {layer: folder / f"{table}.parquet" for layer, folder in folders.items()}

    weights = read_weights(model)
    tokens = embed_vocabulary(model, weights, dictionaries.get(0), len(strings))
    write_deembedding(
        run, dictionaries, model, weights, tokens, strings, paths("deembedding"), config.tokens, config.heads
    )
    connections = {
        layer: find_connections(model, weights, dictionaries, layer, config.connections, config.heads)
        for layer in dictionaries
    }
    sequences = range(count_sequences(text, config.context_tokens))
    prompts = linearize_sequences(model, weights, dictionaries, text, sequences, "prompts")
    means = mean_effects(prompts, connections)
    for layer, path in paths("connection").items():
        write_connections(run, layer, connections[layer], means[layer], path)
    write_blind_predictions(
        run, dictionaries, model, weights, tokens, strings, text, paths("blind"), config.blind_features,
        config.contexts, config.context_tokens, config.scored_tokens, config.batch,
    )  # fmt: skip
