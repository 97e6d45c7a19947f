"""Config of the dictionaries (transcoders and SAEs), which are trained or imported. A sweep with lists describes
several runs."""

import itertools
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ..core.layout import NEURONS, RANDOM, RESIDUAL
from .activations import MLP_OUTPUTS, SiteName
from .base import ExpandedPath, Section, as_list
from .published import Format, is_transcoder_circuits

RESERVED = (NEURONS, RESIDUAL, RANDOM)
"""Names that runs cannot have. Tables use these names for the model's neurons and residual directions."""
FILE_KEYS = ("files", "subfolder", "revision", "format", "largest_fvu")
"""Keys of a run about published files. They do not apply to trained runs."""
IMPORT_KEYS = ("name", "kind", "act", "k", "width", "site", "reads", "skip", *FILE_KEYS)
"""Keys of an imported run that its dictionaries depend on. The others are about training."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class Training(Section):
    """How one dictionary is trained. Keys under `training` apply to all runs. A sweep can override these keys."""

    width: PositiveInt
    """Number of features, F."""
    act: Literal["relu", "topk", "batchtopk", "jumprelu"] = "topk"
    """Activation function."""
    k: PositiveInt = 32
    """Number of active features per token. For batchtopk, this number is the mean over a batch."""
    sparsity: NonNegativeFloat = 1e-3
    """Coefficient λ of the sparsity penalty. For relu, the penalty is L1. For jumprelu, the key `penalty` selects the
    penalty. Other activation functions have no penalty."""
    penalty: Literal["l0", "tanh"] = "l0"
    """Sparsity penalty of jumprelu. In cross-layer transcoders with relu, `tanh` replaces L1."""
    bandwidth: PositiveFloat = 0.05
    """Width of the rectangle kernel of jumprelu, in units of the normalized pre-activation."""
    initial_threshold: NonNegativeFloat = 0.05
    """Initial threshold of jumprelu, in units of the normalized pre-activation."""
    initial_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of the tokens on which each feature is active at the start, under relu and jumprelu. Biases are set to
    reach it on cached tokens. With null, all pre-activations are 0 at the mean input."""
    skip: bool = False
    """Whether to add a linear path from input to output (skip transcoder). In a cross-layer transcoder, each layer has
    one, from its input to its own output."""
    reach: Literal["all"] | NonNegativeInt = "all"
    """Cross-layer transcoders: number of layers beyond its own to which a feature writes. `all`: every later layer that
    is trained. 0: transcoders of one layer each, trained together."""
    budget: Literal["layer", "all"] = "layer"
    """Cross-layer transcoders with batchtopk: whether each layer has k active features per token, or all layers
    together have k times their number, wherever they are needed most."""
    loss: Literal["standard", "paper"] = "standard"
    """Training objective. `paper` is the objective of Dunefsky et al. (2024), for use with the λ values of that paper.
    `paper` requires relu."""
    aux: NonNegativeFloat = 1 / 32
    """Coefficient of the auxiliary loss AuxK, which revives dead features. Only topk and batchtopk use AuxK."""
    dead_tokens: PositiveInt = 250_000
    """A feature that has not fired for this number of tokens is dead."""
    pre_activation: NonNegativeFloat = 0.0
    """Coefficient of the pre-activation loss, which revives dead features under relu and jumprelu: it raises their
    pre-activations until they fire."""
    tokens: PositiveInt = 4_000_000
    """Number of training tokens. If the cache has fewer tokens, training takes several epochs."""
    batch: PositiveInt = 4096
    """Number of tokens per training step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate of Adam."""
    warmup: Fraction = 0.02
    """Fraction of the steps, at the start, during which the learning rate rises linearly."""
    decay: Fraction = 0.2
    """Fraction of the steps, at the end, during which the learning rate falls linearly to zero."""
    sparsity_warmup: Fraction = 0.1
    """Fraction of the steps, at the start, during which λ rises linearly."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of large matrix products. Weights are float32. `auto`: bfloat16 on hardware that is fast at
    bfloat16, and float32 elsewhere. On a CPU, the format affects only the selection of features. Values and gradients
    of selected features are computed in float32."""
    processes: PositiveInt = 1
    """Number of processes that train a dictionary together. Each process has its own GPU, or a share of the threads.
    The number of processes changes results only by rounding."""
    split: Literal["batch", "features"] = "batch"
    """What the processes divide among themselves. `batch`: the tokens of a batch (data parallel). `features`: the
    features (tensor parallel), for dictionaries that do not fit on one GPU."""

    @model_validator(mode="after")
    def _possible_k(self) -> "Training":
        if self.act in ("topk", "batchtopk") and self.k > self.width:
            raise ValueError(
                f"k={self.k} exceeds width={self.width}; choose k at most the number of features"
            )
        if self.tokens < self.batch:
            raise ValueError(
                f"tokens={self.tokens} is less than one batch of {self.batch}; raise tokens or lower batch"
            )
        if self.warmup + self.decay > 1:
            raise ValueError("warmup and decay together exceed 1; lower one")
        if self.loss == "paper" and self.act != "relu":
            raise ValueError(f"loss: paper is defined for act: relu, not {self.act}; change one")
        if self.act in ("topk", "batchtopk") and (self.initial_rate is not None or self.pre_activation):
            raise ValueError(
                f"initial_rate and pre_activation are for relu and jumprelu; act: {self.act} has its rate from k and "
                "revives features by aux; remove them"
            )
        if self.loss == "paper" and (self.initial_rate is not None or self.pre_activation):
            raise ValueError(
                "loss: paper has its own initial weights and terms; remove initial_rate and pre_activation"
            )
        return self

    @model_validator(mode="after")
    def _divides_evenly(self) -> "Training":
        if self.batch % self.processes:
            raise ValueError(
                f"batch={self.batch} does not divide among processes={self.processes}; choose a multiple of it"
            )
        if self.split == "features" and self.width % self.processes:
            raise ValueError(
                f"width={self.width} does not divide among processes={self.processes}; choose a multiple of it, or "
                "split: batch"
            )
        local_width = self.width // self.processes
        if self.split == "features" and self.act in ("topk", "batchtopk") and self.k > local_width:
            raise ValueError(
                f"k={self.k} exceeds the {local_width} features of a process; choose fewer processes, or split: batch"
            )
        return self


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name} is the evaluation's name for a basis of the model; choose another")
    return name


def _has_layer(files: str) -> str:
    pickled = is_transcoder_circuits(files, None)
    if (pickled and "{layer}" not in files) or {"{", "}"} & set(files.replace("{layer}", "")):
        raise ValueError(f"{files}: write {{layer}} in place of the layer's index, and no other braces")
    return files


class Run(Training):
    """A run has one dictionary per layer. All dictionaries of a run have the same settings."""

    kind: Literal["transcoder", "sae", "clt"] = "transcoder"
    """Kind of dictionary. A transcoder reconstructs an MLP's output from the MLP's input. An SAE reconstructs a site
    from itself. A cross-layer transcoder (`clt`) reconstructs the outputs of all MLPs together: each of its features
    reads one MLP's input and writes to this layer's output and later ones (docs/clt.md)."""
    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$"), AfterValidator(_not_reserved)] = (
        ""
    )
    """Name of the run and of its folder: letters, digits, `_`, `.` and `-`. An empty name is replaced by a name made
    from other keys."""
    site: SiteName = "mlp_out"
    """Site that the dictionary reconstructs. An SAE also reads it. A transcoder reconstructs `mlp_out` (what the MLP
    returns) or `mlp_added` (what is added to the residual stream, after a norm that follows the MLP, as in Gemma 2 and
    3). In models without such a norm, the two are the same. `attn_added` is what attention adds to the residual stream,
    also after a norm that follows attention."""
    reads: Literal["mlp_in", "resid_mid"] = "mlp_in"
    """Site that a transcoder (or cross-layer transcoder) reads: the MLP's input, or the residual stream before the
    MLP's norm."""
    files: Annotated[ExpandedPath, AfterValidator(_has_layer)] | None = None
    """Published dictionaries to import instead of training: a folder, a file, or a repository of the hub (`OWNER/NAME`;
    a local folder of this name is preferred, unless `revision` is set). `{layer}` is replaced by the layer's index. The
    format is recognised (docs/exchange.md), and the keys `kind`, `site`, `reads`, `act`, `k`, `width` and `skip` are
    read from the files. A key that is stated too must agree with them. An imported run needs a `name`. Keys about
    training do not apply."""
    subfolder: str = ""
    """Folder in `files`. It may contain `{layer}`."""
    revision: str | None = None
    """Branch, tag or commit of a repository of the hub. With null, it is `main`."""
    format: Format | None = None
    """Format of `files`, if it cannot be recognised. `transcoder_circuits` is that of Dunefsky et al. (2024): one
    pickled file per layer. It is assumed if `files` ends in `.pt`, and needs `act: relu` and the `width` of the files.
    """
    largest_fvu: PositiveFloat = 0.9
    """An import stops if the fraction of variance unexplained on about 1,000 held-out tokens is larger. A larger value
    usually means that the files name a wrong hook. The message says which hooks fit. Files of the format
    `transcoder_circuits` are not tested."""

    @model_validator(mode="after")
    def _as_published(self) -> "Run":
        if self.imported and not self.name:
            raise ValueError("a run with `files` has no settings to be named after; give it a `name`")
        pickled = self.files is not None and is_transcoder_circuits(self.files, self.format)
        if pickled and (self.kind, self.act, self.skip) != ("transcoder", "relu", False):
            raise ValueError(
                "`files` hold transcoders of act relu without skip; set kind: transcoder, act: relu, skip: false"
            )
        if not self.imported and (self.subfolder or self.revision or self.format):
            raise ValueError(
                "subfolder, revision and format describe `files`; name the files, or remove the keys"
            )
        return self

    @model_validator(mode="after")
    def _possible_site(self) -> "Run":
        if self.kind != "sae" and self.site not in MLP_OUTPUTS:
            raise ValueError(
                f"a transcoder reconstructs {' or '.join(MLP_OUTPUTS)}, not {self.site}; change site, or set kind: sae"
            )
        return self

    @model_validator(mode="after")
    def _possible_across_layers(self) -> "Run":
        if self.kind != "clt":
            if self.reach != "all" or self.budget != "layer":
                raise ValueError(
                    f"reach and budget are keys of cross-layer transcoders, not of kind: {self.kind}; remove them, or "
                    "set kind: clt"
                )
            return self
        if self.loss == "paper":
            raise ValueError("loss: paper is defined for transcoders of one layer; remove it for kind: clt")
        if self.budget == "all" and self.act != "batchtopk":
            raise ValueError(
                f"budget: all shares the k of act: batchtopk among layers, and act is {self.act}; change one"
            )
        return self

    @model_validator(mode="after")
    def _possible_reads(self) -> "Run":
        if self.reads != "mlp_in" and self.kind == "sae":
            raise ValueError(
                "an SAE reads the site that it reconstructs; remove `reads`, or set kind: transcoder"
            )
        if self.reads != "mlp_in" and self.loss == "paper" and not self.imported:
            raise ValueError(
                f"loss: paper is defined for the MLP's input after its norm, not for {self.reads}; change one"
            )
        return self

    @property
    def is_cross_layer(self) -> bool:
        """Whether the run is a cross-layer transcoder, whose layers are trained and scored together."""
        return self.kind == "clt"

    def outputs(self, layer: int, layers: Iterable[int]) -> list[int]:
        """Returns the layers among `layers` that the features of `layer` write to."""
        if not self.is_cross_layer:
            return [layer]
        return output_layers(layers, layer, None if self.reach == "all" else self.reach)

    @property
    def imported(self) -> bool:
        """Whether the run is imported from files instead of trained."""
        return self.files is not None

    def file(self, layer: int) -> str:
        """Returns the path of the file of one layer of an imported run."""
        assert self.files is not None
        return self.files.replace("{layer}", str(layer))

    @property
    def site_in(self) -> SiteName:
        """Site that the dictionary reads."""
        return self.site if self.kind == "sae" else self.reads

    @property
    def site_out(self) -> SiteName:
        """Site that the dictionary reconstructs."""
        return self.site


def output_layers(layers: Iterable[int], layer: int, reach: int | None) -> list[int]:
    """Returns the layers among `layers` that features of `layer` write to: `layer` and those after it, up to a distance
    of `reach`. None means all."""
    farthest = math.inf if reach is None else layer + reach
    return [other for other in sorted(layers) if layer <= other <= farthest]


def stated_keys(run: Run) -> dict[str, Any]:
    """Returns the keys of an imported run that choose among several dictionaries of a layer."""
    keys = {"kind": run.kind, "site": run.site, "act": run.act, "width": run.width, "skip": run.skip}
    keys |= {} if run.kind == "sae" else {"reads": run.reads}
    return keys | ({"k": run.k} if run.act in ("topk", "batchtopk") else {})


def run_name(run: Run, shared: dict[str, Any]) -> str:
    """Returns the name of a run: kind, act with its parameter, width, and each key with an unusual value.

    The usual value of a key is its value in `shared`, or its default if `shared` does not have the key.
    """
    parameter = "k" if run.act in ("topk", "batchtopk") else "sparsity"
    value = str(run.k) if parameter == "k" else _scientific(run.sparsity)
    kind = {"transcoder": "tc", "sae": "sae", "clt": "clt"}[run.kind]
    parts = [kind, f"{run.act}{value}", str(run.width)]
    if run.site != "mlp_out":
        parts.append(run.site)
    if run.reads != "mlp_in":
        parts.append(f"from_{run.reads}")
    for key, field in type(run).model_fields.items():
        setting = getattr(run, key)
        # the number of processes does not change what a run is
        if key in ("name", "kind", "act", "width", "site", "reads", "k", "sparsity", "processes", "split"):
            continue
        if setting != shared.get(key, field.default):
            parts.append(key if setting is True else f"no_{key}" if setting is False else f"{key}{setting}")
    return "-".join(parts)


def _scientific(value: float) -> str:
    """Returns a number in the shortest scientific notation, such as 1e-3 or 2.5e-4."""
    digits, exponent = f"{value:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def expand_sweep(training: dict[str, Any], sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the keys of each run of a sweep: one run per combination of list elements. `sweep` overrides
    `training`."""
    merged = {**training, **sweep}
    combinations = itertools.product(*(as_list(value) for value in merged.values()))
    return [dict(zip(merged, values, strict=True)) for values in combinations]
