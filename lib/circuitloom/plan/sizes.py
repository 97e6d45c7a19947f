"""Sizes of corpora, models, activations and dictionaries, and the cost of a forward pass."""

from pathlib import Path

from ..config import ModelShape, Run, Study
from ..config.corpus import TextFiles
from .work import GpuLoad

CHRONICLE_WORDS = 1_500
"""Vocabulary of the generated corpus."""
BYTES_PER_TOKEN = 4.0
"""Bytes of text per token if no tokenizer is available to measure it."""
PROCESS_BYTES = 700e6
"""Memory of a process that has imported torch and transformers."""
USUAL_L0 = 64
"""Assumed active features per token of runs without k."""
FORWARD_PASSES = 110
"""Reads or writes of a [token, d] array per block of a forward pass on a GPU, outside its products.

Fitted to 1.08 million tokens per second of GPT-2 small's shape on an H100 (docs/benchmarks/caching.md).
"""


def corpus_tokens(study: Study) -> tuple[float, float]:
    """Number of training and held-out tokens: as configured, or estimated from the sizes of text files."""
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
    """Measured on the first text file, if the tokenizer is a local file; else `BYTES_PER_TOKEN`."""
    assert isinstance(study.corpus, TextFiles)
    folder = study.corpus.tokenizer or getattr(study.language_model, "path", "")
    tokenizer, text = Path(folder) / "tokenizer.json", Path(study.corpus.train[0])
    if not tokenizer.is_file() or not text.is_file() or text.suffix == ".parquet":
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    with text.open(encoding="utf-8", errors="replace") as file:
        sample = file.read(100_000)
    return len(sample.encode()) / max(1, len(Tokenizer.from_file(str(tokenizer)).encode(sample)))


def vocabulary(shape: ModelShape) -> int:
    """Size of the vocabulary."""
    return shape.vocabulary or CHRONICLE_WORDS


def mlp_weights(shape: ModelShape) -> float:
    """Weights of the MLP of one block."""
    return (3 if shape.gated else 2) * shape.d_model * shape.d_mlp


def model_parameters(shape: ModelShape) -> tuple[float, float]:
    """Number of weights of all blocks, and of the embedding."""
    shared = (shape.key_value_heads or shape.heads) / shape.heads
    attention = (2 + 2 * shared) * shape.d_model**2
    return shape.layers * (attention + mlp_weights(shape)), vocabulary(shape) * shape.d_model


def number_bytes(study: Study) -> int:
    """Bytes per number in the model's dtype."""
    return 4 if getattr(study.language_model, "dtype", "float32") == "float32" else 2


def model_bytes(study: Study) -> float:
    """Bytes of the model's weights in its dtype."""
    return number_bytes(study) * sum(model_parameters(study.shape))


def forward(study: Study, layers: float) -> float:
    """Operations per token of a forward pass through `layers` layers, without unembedding."""
    shape = study.shape
    blocks, _ = model_parameters(shape)
    attention = 4 * study.corpus.context * shape.d_model
    return layers * (2 * blocks / shape.layers + attention)


def forward_load(study: Study, layers: float, unembeddings: float = 0.0, size: int | None = None) -> GpuLoad:
    """GPU load per token of `forward` plus `unembeddings` unembeddings, with `size` bytes per number."""
    shape, size = study.shape, size or number_bytes(study)
    operations = forward(study, layers) + 2 * unembeddings * vocabulary(shape) * shape.d_model
    moved = FORWARD_PASSES * size * shape.d_model * layers + 3 * size * unembeddings * vocabulary(shape)
    return (
        GpuLoad(fp32_flops=operations, moved=moved)
        if size == 4
        else GpuLoad(bf16_flops=operations, moved=moved)
    )


def forward_bytes(study: Study, tokens: float) -> float:
    """Bytes of GPU memory of the model and a forward pass of `tokens` tokens."""
    return model_bytes(study) + tokens * number_bytes(study) * (
        8 * study.shape.d_model + 3 * study.shape.d_mlp
    )


def activation_bytes(study: Study) -> float:
    """Bytes on disk per token, site and layer."""
    d = study.shape.d_model
    return d * {"float16": 2, "bfloat16": 2, "int8": 1 + 4 / d}[study.activations.dtype]


def weight_bytes(run: Run, d: int) -> float:
    """Bytes of a dictionary's weights."""
    return 4 * (2 * run.width * d + 2 * run.width)


def is_sparse(run: Run) -> bool:
    """Whether k sets the number of active features per token."""
    return run.act in ("topk", "batchtopk")


def firing(run: Run) -> float:
    """Active features per token."""
    return run.k if is_sparse(run) else USUAL_L0
