"""How dictionaries (transcoders and SAEs) are trained, or which are imported. A sweep describes runs; lists expand."""

import itertools
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

from .activations import SiteName
from .base import ExpandedPath, Section, as_list

RESERVED = ("neurons", "residual")
"""Names that tables give to the model's own neurons and residual directions, beside those of runs."""
Share = Annotated[float, Field(ge=0, le=1)]


class Training(Section):
    """How one dictionary is trained. `training:` in a config sets these for all runs, a sweep for its own."""

    width: PositiveInt
    """Number of features, F."""
    act: Literal["relu", "topk", "batchtopk", "jumprelu"] = "topk"
    """Activation function."""
    k: PositiveInt = 32
    """Active features a token (topk), or a token on average (batchtopk)."""
    sparsity: NonNegativeFloat = 1e-3
    """Weight λ of the sparsity penalty (relu: L1; jumprelu: L0 or tanh)."""
    penalty: Literal["l0", "tanh"] = "l0"
    """Sparsity penalty of jumprelu."""
    bandwidth: PositiveFloat = 0.05
    """Width of the rectangle kernel of jumprelu, in units of the normalised pre-activation."""
    initial_threshold: NonNegativeFloat = 0.05
    """Threshold of jumprelu before training, in the same units."""
    skip: bool = False
    """Add a linear path from input to output (skip transcoder)."""
    loss: Literal["standard", "paper"] = "standard"
    """`paper` reproduces the objective of Dunefsky et al. 2024, so that their λ transfer."""
    aux: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss that revives dead features (topk and batchtopk)."""
    dead_tokens: PositiveInt = 250_000
    """A feature silent for so many tokens counts as dead."""
    tokens: PositiveInt = 4_000_000
    """Tokens trained on, over as many epochs as that takes."""
    batch: PositiveInt = 4096
    """Tokens a step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate of Adam, reached after warm-up."""
    warmup: Share = 0.02
    """Share of the steps over which the learning rate rises."""
    decay: Share = 0.2
    """Share of the steps, the last, over which the learning rate falls linearly to zero."""
    sparsity_warmup: Share = 0.1
    """Share of the steps over which λ rises."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the large products, master weights being float32; `auto`: bfloat16 where that is faster.
    On a CPU only the choice of features rests on it: their values and gradients are float32."""
    processes: PositiveInt = 1
    """Processes that train a dictionary together, each on a GPU of its own, or on its share of the threads. Results
    differ by rounding alone."""
    split: Literal["batch", "features"] = "batch"
    """What each process has a share of: the batch, or, for dictionaries larger than a GPU, the features."""

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
        return self

    @model_validator(mode="after")
    def _equal_shares(self) -> "Training":
        if self.batch % self.processes:
            raise ValueError(
                f"batch={self.batch} does not divide among processes={self.processes}; choose a multiple of it"
            )
        if self.split == "features" and self.width % self.processes:
            raise ValueError(
                f"width={self.width} does not divide among processes={self.processes}; choose a multiple of it, or "
                "split: batch"
            )
        share = self.width // self.processes
        if self.split == "features" and self.act in ("topk", "batchtopk") and self.k > share:
            raise ValueError(
                f"k={self.k} exceeds the {share} features of a process; choose fewer processes, or split: batch"
            )
        return self


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name} is what the evaluation calls the model's own; choose another")
    return name


def _one_a_layer(files: str) -> str:
    if "{layer}" not in files or {"{", "}"} & set(files.replace("{layer}", "")):
        raise ValueError(f"{files}: write {{layer}} where the layer's number stands, and no other braces")
    return files


class Run(Training):
    """One dictionary for each layer: what it reads, what it writes, how it is trained."""

    kind: Literal["transcoder", "sae"] = "transcoder"
    """A transcoder maps the MLP's input to its output; an SAE maps a site to itself."""
    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$"), AfterValidator(_not_reserved)] = (
        ""
    )
    """Name of the run's folder (letters, digits, `_`, `.`, `-`); made from the other keys where it is empty."""
    site: SiteName = "mlp_out"
    """The site of an SAE (a transcoder reads mlp_in and writes mlp_out)."""
    files: Annotated[ExpandedPath, AfterValidator(_one_a_layer)] | None = None
    """Published transcoders (Dunefsky et al. 2024) to import instead of training: a path in which `{layer}` stands for
    the layer's number. Such a run needs `name`, the files' `width`, and `act: relu`; how others are trained is
    nothing to it."""

    @model_validator(mode="after")
    def _as_published(self) -> "Run":
        if self.imported and not self.name:
            raise ValueError("a run with `files` has no settings to be named after; give it a `name`")
        if self.imported and (self.kind, self.act, self.skip) != ("transcoder", "relu", False):
            raise ValueError(
                "`files` hold transcoders of act relu without skip; set kind: transcoder, act: relu, skip: false"
            )
        return self

    @property
    def imported(self) -> bool:
        """The run comes from files and is not trained."""
        return self.files is not None

    def file(self, layer: int) -> str:
        """The file of one layer of a run that is imported."""
        assert self.files is not None
        return self.files.replace("{layer}", str(layer))

    @property
    def site_in(self) -> SiteName:
        """The site that is read."""
        return "mlp_in" if self.kind == "transcoder" else self.site

    @property
    def site_out(self) -> SiteName:
        """The site that is reconstructed."""
        return "mlp_out" if self.kind == "transcoder" else self.site


def run_name(run: Run, usual: dict[str, Any]) -> str:
    """Kind, act with its parameter, width; then every other key that is not as `usual` has it, else as the default."""
    parameter = "k" if run.act in ("topk", "batchtopk") else "sparsity"
    value = str(run.k) if parameter == "k" else _scientific(run.sparsity)
    parts = ["tc" if run.kind == "transcoder" else "sae", f"{run.act}{value}", str(run.width)]
    if run.kind == "sae" and run.site != "mlp_out":
        parts.append(run.site)
    for key, field in type(run).model_fields.items():
        setting = getattr(run, key)
        # by how many processes it is trained is nothing that a run is
        if key in ("name", "kind", "act", "width", "site", "k", "sparsity", "processes", "split"):
            continue
        if setting != usual.get(key, field.default):
            parts.append(key if setting is True else f"no_{key}" if setting is False else f"{key}{setting}")
    return "-".join(parts)


def _scientific(value: float) -> str:
    """1e-3, 2.5e-4: the shortest form with one digit in front."""
    digits, exponent = f"{value:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def expand_sweep(training: dict[str, Any], sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The keys of each run: the sweep's over the shared ones, every list expanded into their product."""
    merged = {**training, **sweep}
    combinations = itertools.product(*(as_list(value) for value in merged.values()))
    return [dict(zip(merged, values, strict=True)) for values in combinations]
