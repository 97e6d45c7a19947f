"""The work of the stages up to the activations."""

import math

from ..config import Study
from ..config.corpus import Hub as HubCorpus
from ..config.language_model import Hub as HubModel
from ..config.language_model import Pretrain
from .sizes import (
    BYTES_PER_TOKEN,
    PROCESS_BYTES,
    activation_bytes,
    forward,
    forward_bytes,
    forward_load,
    model_bytes,
    model_parameters,
    vocabulary,
)
from .work import Work


def corpus(study: Study, tokens: float) -> Work:
    """Text to tokens, by one job."""
    wide = vocabulary(study.shape) > 2**16
    text = tokens * BYTES_PER_TOKEN * 0.5
    # a token and the number of its document; both and the text lie there twice until the parts are put together
    arrays = tokens * ((4 if wide else 2) + 4)
    disk = 2 * (arrays + text) + tokens
    fetched = text if isinstance(study.corpus, HubCorpus) else 0
    return Work(
        "corpus", tokens, disk, PROCESS_BYTES, alone=True, host=PROCESS_BYTES, download=fetched, files=6
    )


def language_model(study: Study) -> Work:
    """A model that is trained here, or laid down."""
    blocks, embedding = model_parameters(study.shape)
    size, model = 4 * (blocks + embedding), study.language_model
    if not isinstance(model, Pretrain):
        fetched = model_bytes(study) if isinstance(model, HubModel) else 0
        # it is loaded once, to find the names of its parts
        return Work(
            "language_model",
            tokens=0,
            disk=model_bytes(study),
            memory=PROCESS_BYTES + model_bytes(study),
            starts=2,
            alone=True,
            host=PROCESS_BYTES + model_bytes(study),
            download=fetched,
            files=10,
        )
    operations = 3 * model.tokens * (forward(study, study.shape.layers) + 2 * embedding)
    batch = model.batch * study.corpus.context * vocabulary(study.shape) * 6
    return Work(
        "language_model",
        tokens=model.tokens,
        disk=4 * size,
        memory=PROCESS_BYTES + 4 * size + batch,
        operations=operations,
        starts=2,
        alone=True,
        load=forward_load(study, study.shape.layers, 1, 2) * (3 * model.tokens),
        host=PROCESS_BYTES + size,
        held=4 * size + batch,
        files=10,
    )


def activations(study: Study, train_tokens: float) -> Work:
    """A site's jobs, one or several, pass all rows through the model and write all layers."""
    config = study.activations
    rows = min(config.tokens or train_tokens, train_tokens)
    arrays, last = len(study.layers) * len(config.sites), max(study.layers) + 1
    shard = min(config.shard_rows, rows) * activation_bytes(study) * len(study.layers)
    shards = math.ceil(rows / config.shard_rows)
    jobs = len(config.sites) * min(config.jobs, shards)
    written = rows * activation_bytes(study) * arrays
    blocks, embedding = model_parameters(study.shape)
    return Work(
        "activations",
        tokens=rows * len(config.sites),
        disk=written + 6 * rows,
        memory=PROCESS_BYTES + 4 * (blocks + embedding) + 2 * shard,
        operations=rows * len(config.sites) * forward(study, last),
        jobs=jobs,
        starts=jobs + 1,
        alone=config.jobs == 1,
        load=forward_load(study, last) * (rows * len(config.sites)),
        host=PROCESS_BYTES + 2 * shard,
        held=forward_bytes(study, config.batch * study.corpus.context),
        written=written,
        files=arrays * shards,
    )
