"""Exports feature tables to the files from which Neuronpedia imports a source.

The fields are those of the dataclasses in utils/neuronpedia-utils/neuronpedia_utils/db_models of
hijohnnylin/neuronpedia, as far as the database has them (apps/webapp/prisma/schema.prisma). Fields that this project
does not know are left out, and the database fills in its defaults. A source is one layer of a source set.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...config.model_shape import ModelShape
from ...core.atomic_io import write_atomically
from .feature_texts import TABLES, FeatureSource, FeatureTexts, json_list
from .parts import export_folder, write_missing

CREATOR = "clkht01d40000jv08hvalcvly"
"""Id of the user to whom Neuronpedia's own converters assign what they import."""
GZIP_LEVEL = 5
_ID = re.compile("[a-zA-Z0-9_-]{1,128}")
_SET = re.compile("[a-zA-Z0-9_.-]+")


@dataclass(frozen=True)
class NeuronpediaNames:
    """Names under which Neuronpedia shows a run.

    Raises ValueError if a name has characters that Neuronpedia does not accept.
    """

    model: str
    """Id of the model, such as gemma-2-2b."""
    source_set: str
    """Name of the source set, without the layer."""
    creator: str
    release: str
    description: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.model):
            raise ValueError(f"model id {self.model!r}: use letters, digits, - and _ (--model)")
        for name in (self.source_set, self.release):
            if not _SET.fullmatch(name):
                raise ValueError(f"{name!r}: use letters, digits, - and _ for source set and release")


def export_neuronpedia(
    sources: Iterable[FeatureSource],
    output: Path,
    names: NeuronpediaNames,
    shape: ModelShape,
    labels: Mapping[tuple[int, int], str] | None = None,
) -> None:
    """Write one folder per layer: `output`/v1/MODEL/LAYER-SET.

    `labels` maps (layer, feature) to a label; without labels there is no folder `explanations`. A layer that is
    complete is not written again. After an interruption, the next call continues with the first missing batch. Raises
    ValueError if a table is missing or damaged.
    """
    folder = output / "v1" / names.model
    for source in sources:
        own = {feature: text for (layer, feature), text in (labels or {}).items() if layer == source.layer}
        digest = source.digest(*TABLES, format="neuronpedia", names=vars(names), labels=sorted(own.items()))
        name = f"{source.layer}-{names.source_set}"
        with export_folder(folder / name, output / name, digest) as work:
            if work is not None:
                _write_source(source, work, name, names, shape, own)


def _write_source(
    source: FeatureSource,
    work: Path,
    name: str,
    names: NeuronpediaNames,
    shape: ModelShape,
    labels: Mapping[int, str],
) -> None:
    # the time of the table, so that the same table gives the same bytes
    made = datetime.fromtimestamp(source.file("feature").stat().st_mtime, UTC).isoformat(timespec="seconds")
    for table, row in _descriptions(source, name, names, shape, made).items():
        write_atomically(work / f"{table}.jsonl", f"{json.dumps(row)}\n".encode())
    for table in ("features", "activations", *(["explanations"] if labels else [])):
        (work / table).mkdir(exist_ok=True)
    parts = source.parts()
    batches = [f"batch-{i}.jsonl.gz" for i in range(len(parts))]
    writer = _SourceWriter(source, name, names, made, labels)

    def write(i: int, features: range) -> None:
        texts = source.read(features)
        explained = [writer.explanation(feature) for feature in features if feature in labels]
        if explained:
            _write_lines(work / "explanations" / batches[i], explained)
        activations = [line for j in range(len(features)) for line in writer.activations(texts, j)]
        # the importer reads the fields from the first line, so a batch without lines must have no file
        if activations:
            _write_lines(work / "activations" / batches[i], activations)
        # last, because this file says that the batch is complete
        _write_lines(work / "features" / batches[i], [writer.feature(texts, j) for j in range(len(features))])

    write_missing(
        f"neuronpedia: {source.run} layer {source.layer}",
        parts,
        lambda i: work / "features" / batches[i],
        write,
    )


def _write_lines(file: Path, lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(file, gzip.compress(content, GZIP_LEVEL, mtime=0))


def _descriptions(
    source: FeatureSource, name: str, names: NeuronpediaNames, shape: ModelShape, made: str
) -> dict[str, dict[str, Any]]:
    """Returns the row of each table that describes the source."""
    shared = {"creatorId": CREATOR, "createdAt": made, "visibility": "PUBLIC"}
    return {
        "release": {
            "name": names.release,
            "description": names.description or names.release,
            "descriptionShort": names.release,
            "creatorName": names.creator,
            "creatorNameShort": names.creator,
            "urls": [],
            "defaultSourceSetName": names.source_set,
            **shared,
        },
        "model": {
            "id": names.model,
            "displayName": names.model,
            "displayNameShort": names.model,
            "instruct": False,
            "inferenceEnabled": False,
            "layers": shape.layers,
            "neuronsPerLayer": shape.d_mlp,
            "dimension": shape.d_model,
            "owner": names.creator,
            "updatedAt": made,
            **shared,
        },
        "sourceset": {
            "modelId": names.model,
            "name": names.source_set,
            "description": names.description or f"{source.run}, {source.width} features",
            "creatorName": names.creator,
            "releaseName": names.release,
            "urls": [],
            **shared,
        },
        "source": {
            "id": name,
            "modelId": names.model,
            "setName": names.source_set,
            "inferenceEnabled": False,
            **shared,
        },
    }


class _SourceWriter:
    """Writes the lines of one source."""

    def __init__(
        self, source: FeatureSource, name: str, names: NeuronpediaNames, made: str, labels: Mapping[int, str]
    ) -> None:
        self.labels = labels
        self.model, self.source = names.model, name
        self.key = hashlib.sha256(f"{names.model}/{name}".encode()).hexdigest()[:12]
        self.shared = f'"modelId":{json.dumps(names.model)},"layer":{json.dumps(name)},"createdAt":"{made}"'

    def feature(self, texts: FeatureTexts, i: int) -> str:
        """Returns the line of a feature."""
        (raised, lowered), (ups, downs) = texts.logit_tokens[i], texts.logit_effects[i]
        centers, counts = texts.bins[i]
        largest = texts.max_activation[i]
        return (
            f'{{{self.shared},"index":"{texts.features[i]}","creatorId":"{CREATOR}",'
            f'"maxActApprox":{"0" if largest == "null" else largest},"hasVector":false,'
            f'"pos_str":{json_list(raised)},"pos_values":{json_list(ups)},'
            f'"neg_str":{json_list(lowered)},"neg_values":{json_list(downs)},'
            f'"frac_nonzero":{texts.density[i]},'
            f'"freq_hist_data_bar_values":{json_list(centers)},"freq_hist_data_bar_heights":{json_list(counts)}}}'
        )

    def activations(self, texts: FeatureTexts, i: int) -> list[str]:
        """Returns the lines of a feature's examples."""
        examples, index = texts.examples, texts.features[i]
        lines = []
        for j in texts.of(i):
            band, rank = examples.band[j], examples.rank[j]
            # Neuronpedia marks the largest activations by -1
            low, share = ("-1", "-1") if band == 0 else (examples.low[j], examples.share[j])
            lines.append(
                f'{{"id":"c{self.key}{index:06x}{band:02x}{rank:04x}",{self.shared},"index":"{index}",'
                f'"creatorId":"{CREATOR}","tokens":{examples.tokens[j]},"values":{examples.activations[j]},'
                f'"maxValue":{examples.largest[j]},"maxValueTokenIndex":{examples.largest_at[j]},'
                f'"minValue":{examples.smallest[j]},"binMin":{low},"binMax":{examples.high[j]},"binContains":{share},'
                f'"qualifyingTokenIndex":{examples.place[j]},"dfaValues":[],"lossValues":[]}}'
            )
        return lines

    def explanation(self, feature: int) -> str:
        """Returns the line of a feature's label."""
        return (
            f'{{"id":"c{self.key}{feature:06x}label",{self.shared},"index":"{feature}","authorId":"{CREATOR}",'
            f'"description":{json.dumps(self.labels[feature])}}}'
        )
