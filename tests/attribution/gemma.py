"""A tiny model with norms behind its MLPs and attention, and an embedding that it scales."""

from pathlib import Path

from tests.models import CONTEXT, D_MODEL, LAYERS, VOCABULARY, _save

from circuitloom.language_model.model import LanguageModel, load_model


def load_gemma(folder: Path) -> LanguageModel:
    """Gemma 3: RMSNorms in front and behind, an embedding that counts sqrt(d) times, grouped heads."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=D_MODEL, intermediate_size=40,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    path = folder / "gemma"
    return load_model(path if path.is_dir() else _save(Gemma3ForCausalLM, config, path, 0), device="cpu")
