"""Estimates the sizes of corpora, models, activations and dictionaries, and the cost of a forward pass."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ..config import ModelShape, Run, Study
from ..config.corpus import TextFiles
from ..corpus.files import DataFile, file_format, open_content
from ..dictionaries.dictionary import BLOCK_ELEMENTS
from ..dictionaries.mapped_file import MAPPED
from ..language_model.batches import MOST, Batch, automatic_batch, pass_bytes
from .work import GpuLoad

CHRONICLE_WORDS = 1_500
"""Size of the vocabulary of the generated corpus."""
BYTES_PER_TOKEN = 4.0
"""Assumed bytes of text per token, without a local tokenizer."""
PROCESS_BYTES = 700e6
"""Bytes of memory of a process that has imported torch and transformers."""
USUAL_L0 = 64
"""Assumed number of active features per token for runs without k."""
FORWARD_PASSES = 110
"""Number of [token, d] arrays that each block of a forward pass moves on a GPU, outside matrix products.

The number is fitted to a measured rate: 1.08 million tokens per second for a model of GPT-2 small's shape on an H100
(docs/benchmarks/caching.md).
"""


def corpus_tokens(study: Study) -> tuple[float, float]:
    """Returns the numbers of training tokens and held-out tokens, as configured or estimated from the sizes of text
    files."""
    corpus = study.corpus
    if not isinstance(corpus, TextFiles):
        return corpus.train_tokens, corpus.validation_tokens
    per_token = _bytes_per_token(study)
    train, held_out = (
        sum(file.characters() for file in _text_files(corpus, split)) / per_token
        for split in ("train", "validation")
    )
    if corpus.validation is None:
        held_out, train = train * corpus.validation_share, train * (1 - corpus.validation_share)
    return min(train, corpus.train_tokens or train), min(held_out, corpus.validation_tokens or held_out)


def _text_files(corpus: TextFiles, split: str) -> list[DataFile]:
    """Returns the files of a split that exist. The corpus stage reports the others."""
    formats = {path: file_format(path) for path in corpus.files(split) if Path(path).is_file()}
    return [DataFile(path, known) for path, known in formats.items() if known]


def _bytes_per_token(study: Study) -> float:
    """Returns the bytes of text per token, measured on the first text file. Without a local tokenizer, returns
    `BYTES_PER_TOKEN`."""
    assert isinstance(study.corpus, TextFiles)
    folder = study.corpus.tokenizer or getattr(study.language_model, "path", "")
    tokenizer, files = Path(folder) / "tokenizer.json", _text_files(study.corpus, "train")
    if not tokenizer.is_file() or not files or files[0].format == "parquet":
        return BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    with open_content(files[0].path) as content:
        sample = content.read(100_000).decode(errors="replace")
    return len(sample.encode()) / max(1, len(Tokenizer.from_file(str(tokenizer)).encode(sample)))


def vocabulary(shape: ModelShape) -> int:
    """Returns the size of the vocabulary."""
    return shape.vocabulary or CHRONICLE_WORDS


def model_parameters(shape: ModelShape) -> tuple[float, float]:
    """Returns the number of weights in all blocks together, and the number of weights in the embedding."""
    return shape.layers * (shape.attention_weights + shape.mlp_weights), vocabulary(shape) * shape.d_model


def number_bytes(study: Study) -> int:
    """Returns the bytes per number in the model's dtype."""
    return 4 if getattr(study.language_model, "dtype", "float32") == "float32" else 2


def circuit_number_bytes(study: Study) -> int:
    """Returns the bytes per number in circuits and case studies, which load the model in a dtype of their own."""
    return 8 if study.circuits.dtype == "float64" else 4


def model_bytes(study: Study, size: int | None = None) -> float:
    """Returns the bytes of the model's weights. `size` is the number of bytes per number, by default in its dtype."""
    blocks, embedding = model_parameters(study.shape)
    return (size or number_bytes(study)) * (blocks + (1 if study.shape.tied else 2) * embedding)


def forward(study: Study, layers: float) -> float:
    """Returns the operations per token of a forward pass through `layers` layers, without the unembedding."""
    shape = study.shape
    blocks, _ = model_parameters(shape)
    attention = 4 * study.corpus.context * shape.attention_width
    return layers * (2 * blocks / shape.layers + attention)


def forward_load(study: Study, layers: float, unembeddings: float = 0.0, size: int | None = None) -> GpuLoad:
    """Returns the GPU load per token of a forward pass through `layers` layers and of `unembeddings` unembeddings.

    `size` is the number of bytes per number, by default in the model's dtype.
    """
    shape, size = study.shape, size or number_bytes(study)
    operations = forward(study, layers) + 2 * unembeddings * vocabulary(shape) * shape.d_model
    moved = FORWARD_PASSES * size * shape.d_model * layers + 3 * size * unembeddings * vocabulary(shape)
    return (
        GpuLoad(fp32_flops=operations, moved=moved)
        if size == 4
        else GpuLoad(bf16_flops=operations, moved=moved)
    )


def forward_bytes(study: Study, tokens: float) -> float:
    """Returns the bytes of memory that the model and a forward pass of `tokens` tokens take."""
    shape = study.shape
    return model_bytes(study) + tokens * pass_bytes(shape.d_model, shape.d_mlp, number_bytes(study))


def pass_tokens(study: Study, batch: Batch, kept: int = 0, most: int = MOST) -> int:
    """Returns the number of tokens per forward pass. `kept` and `most` are those of `automatic_batch`."""
    shape, context = study.shape, study.corpus.context
    if batch == "auto":
        batch = automatic_batch(shape.d_model, shape.d_mlp, number_bytes(study), context, kept, most)
    return batch * context


def activation_bytes(study: Study) -> float:
    """Returns the bytes on disk of the activations of one token at one site and layer."""
    d = study.shape.d_model
    return d * {"float16": 2, "bfloat16": 2, "int8": 1 + 4 / d}[study.activations.dtype]


def outputs_per_feature(run: Run, layers: Sequence[int]) -> float:
    """Returns the number of layers that a feature writes to, as a mean over `layers`. 1 for all but cross-layer
    transcoders."""
    return fmean(len(run.outputs(layer, layers)) for layer in layers)


def weight_rows(run: Run, layers: Sequence[int]) -> float:
    """Returns the number of rows of a layer's encoder and decoders, as a mean over `layers`."""
    return (1 + outputs_per_feature(run, layers)) * run.width


def weight_bytes(run: Run, d: int, layers: Sequence[int]) -> float:
    """Returns the bytes of a dictionary's weights, as a mean over the study's `layers`."""
    return 4 * (weight_rows(run, layers) * d + 2 * run.width)


def is_mapped(run: Run, d: int, layers: Sequence[int], device: str) -> bool:
    """Whether evaluation, feature tables and traces leave a layer's matrices in its file on `device`, cpu or cuda."""
    return weight_rows(run, layers) * d > MAPPED[device]


def resident_bytes(run: Run, d: int, layers: Sequence[int], device: str) -> float:
    """Returns the bytes of memory that a layer's dictionary takes where large ones are mapped: all weights, or a block
    of the encoder with its pre-activations, and biases and thresholds."""
    if not is_mapped(run, d, layers, device):
        return weight_bytes(run, d, layers)
    return 4 * (2 * BLOCK_ELEMENTS + 2 * run.width)


def is_sparse(run: Run) -> bool:
    """Whether `k` sets the number of active features per token."""
    return run.act in ("topk", "batchtopk")


def firing(run: Run) -> float:
    """Returns the number of active features per token."""
    return run.k if is_sparse(run) else USUAL_L0
