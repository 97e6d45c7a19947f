"""How large things are, and what a forward pass takes."""

from pathlib import Path

from ..config import Run, Shape, Study
from ..config.corpus import TextFiles
from ..config.language_model import Pretrain
from .work import Load

CHRONICLE_WORDS = 1_500
BYTES_PER_TOKEN = 4.0
"""Of text, where no tokenizer is at hand to measure it."""
PROCESS_BYTES = 700e6
"""Memory of a process that has torch and transformers loaded."""
USUAL_L0 = 64
"""Features that fire on a token, where no k says so."""
FORWARD_PASSES = 110
"""Passes over [token, d] a block that a forward pass on a GPU takes beside its products: what is left of 1.08 million
tokens a second of GPT-2 small's shape on an H100 (docs/benchmarks/caching.md)."""


def corpus_tokens(study: Study) -> tuple[float, float]:
    """Training and held-out tokens: as configured, or estimated from the files' sizes."""
    corpus = study.corpus
    if not isinstance(corpus, TextFiles):
        return corpus.train_tokens, corpus.validation_tokens
    per_token = _bytes_per_token(study)
    train = sum(Path(file).stat().st_size for file in corpus.train if Path(file).exists()) / per_token
    if corpus.validation is None:
        held_out, train = train * corpus.validation_share, train * (1 - corpus.validation_share)
    else:
        held_out = (
            sum(Path(file).stat().st_size for file in corpus.validation if Path(file).exists()) / per_token
        )
    return min(train, corpus.train_tokens or train), min(held_out, corpus.validation_tokens or held_out)


def _bytes_per_token(study: Study) -> float:
    """Of the first text there is, where the tokenizer lies in a folder."""
    assert isinstance(study.corpus, TextFiles)
    folder = study.corpus.tokenizer or getattr(study.language_model, "path", "")
    tokenizer, text = Path(folder) / "tokenizer.json", Path(study.corpus.train[0])
    if not tokenizer.is_file() or not text.is_file() or text.suffix == ".parquet":
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    with text.open(encoding="utf-8", errors="replace") as file:
        sample = file.read(100_000)
    return len(sample.encode()) / max(1, len(Tokenizer.from_file(str(tokenizer)).encode(sample)))


def vocabulary(shape: Shape) -> int:
    """Number of tokens."""
    return shape.vocabulary or CHRONICLE_WORDS


def mlp_weights(shape: Shape) -> float:
    """Of one block."""
    return (3 if shape.gated else 2) * shape.d_model * shape.d_mlp


def model_parameters(shape: Shape) -> tuple[float, float]:
    """Weights of the blocks, and of the embedding."""
    shared = (shape.key_value_heads or shape.heads) / shape.heads
    attention = (2 + 2 * shared) * shape.d_model**2
    return shape.layers * (attention + mlp_weights(shape)), vocabulary(shape) * shape.d_model


def number_bytes(study: Study) -> int:
    """Of a number, as the model runs."""
    return 4 if getattr(study.language_model, "dtype", "float32") == "float32" else 2


def model_bytes(study: Study) -> float:
    """Of the model's weights, as it runs."""
    return number_bytes(study) * sum(model_parameters(study.shape))


def forward(study: Study, layers: float) -> float:
    """Operations a token of a forward pass through some of the layers, unembedding left out."""
    shape = study.shape
    blocks, _ = model_parameters(shape)
    attention = 4 * study.corpus.context * shape.d_model
    return layers * (2 * blocks / shape.layers + attention)


def forward_load(study: Study, layers: float, unembeddings: float = 0.0, size: int | None = None) -> Load:
    """The same on a GPU, with so many unembeddings, in numbers of `size` bytes."""
    shape, size = study.shape, size or number_bytes(study)
    operations = forward(study, layers) + 2 * unembeddings * vocabulary(shape) * shape.d_model
    moved = FORWARD_PASSES * size * shape.d_model * layers + 3 * size * unembeddings * vocabulary(shape)
    return Load(full=operations, moved=moved) if size == 4 else Load(low=operations, moved=moved)


def forward_bytes(study: Study, tokens: float) -> float:
    """GPU memory of the model and of a pass of so many tokens."""
    return model_bytes(study) + tokens * number_bytes(study) * (
        8 * study.shape.d_model + 3 * study.shape.d_mlp
    )


def activation_bytes(study: Study) -> float:
    """On disk, of one token at one site and layer."""
    d = study.shape.d_model
    return d * {"float16": 2, "bfloat16": 2, "int8": 1 + 4 / d}[study.activations.dtype]


def weight_bytes(run: Run, d: int) -> float:
    """Of a dictionary's weights."""
    return 4 * (2 * run.width * d + 2 * run.width)


def is_sparse(run: Run) -> bool:
    """k says how many features fire on a token."""
    return run.act in ("topk", "batchtopk")


def firing(run: Run) -> float:
    """Features that fire on a token."""
    return run.k if is_sparse(run) else USUAL_L0


def is_pretrained(study: Study) -> bool:
    """The model is trained here."""
    return isinstance(study.language_model, Pretrain)
