"""Training or import of dictionaries (transcoders and SAEs). A sweep describes several runs: lists are expanded."""

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

from ..core.layout import NEURONS, RESIDUAL
from .activations import SiteName
from .base import ExpandedPath, Section, as_list

RESERVED = (NEURONS, RESIDUAL)
"""Names that runs cannot have: tables use them for the model's neurons and residual directions."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class Training(Section):
    """How one dictionary is trained. Keys under `training` apply to all runs; a sweep's own keys override them."""

    width: PositiveInt
    """Number of features, F."""
    act: Literal["relu", "topk", "batchtopk", "jumprelu"] = "topk"
    """Activation function."""
    k: PositiveInt = 32
    """Active features per token (topk), or mean number of active features per token (batchtopk)."""
    sparsity: NonNegativeFloat = 1e-3
    """Coefficient λ of the sparsity penalty (relu: L1; jumprelu: L0 or tanh)."""
    penalty: Literal["l0", "tanh"] = "l0"
    """Sparsity penalty of jumprelu."""
    bandwidth: PositiveFloat = 0.05
    """Width of the rectangle kernel of jumprelu, in units of the normalized pre-activation."""
    initial_threshold: NonNegativeFloat = 0.05
    """Initial threshold of jumprelu, in units of the normalized pre-activation."""
    skip: bool = False
    """Add a linear path from input to output (skip transcoder)."""
    loss: Literal["standard", "paper"] = "standard"
    """`paper`: the objective of Dunefsky et al. (2024), so that their values of λ apply."""
    aux: NonNegativeFloat = 1 / 32
    """Coefficient of the auxiliary loss AuxK, which revives dead features (topk and batchtopk)."""
    dead_tokens: PositiveInt = 250_000
    """A feature that has not fired for this number of tokens is dead."""
    tokens: PositiveInt = 4_000_000
    """Training tokens; several epochs if the cache has fewer."""
    batch: PositiveInt = 4096
    """Tokens per training step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate of Adam, reached after warmup."""
    warmup: Fraction = 0.02
    """Fraction of the steps during which the learning rate rises linearly."""
    decay: Fraction = 0.2
    """Fraction of the steps, at the end, during which the learning rate falls linearly to zero."""
    sparsity_warmup: Fraction = 0.1
    """Fraction of the steps during which λ rises linearly."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of large matrix products; master weights are float32. `auto`: bfloat16 where it is faster. On a CPU
    it only affects which features are selected: their values and gradients are float32."""
    processes: PositiveInt = 1
    """Number of processes that train a dictionary together, each on its own GPU or with a share of the threads. Results
    differ only by rounding."""
    split: Literal["batch", "features"] = "batch"
    """`batch`: data parallel; `features`: tensor parallel over features, for dictionaries larger than a GPU."""

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
    if "{layer}" not in files or {"{", "}"} & set(files.replace("{layer}", "")):
        raise ValueError(f"{files}: write {{layer}} in place of the layer's index, and no other braces")
    return files


class Run(Training):
    """One dictionary per layer: its kind, its sites, and how it is trained."""

    kind: Literal["transcoder", "sae"] = "transcoder"
    """A transcoder maps the MLP's input to its output; an SAE maps a site to itself."""
    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$"), AfterValidator(_not_reserved)] = (
        ""
    )
    """Name of the run's folder (letters, digits, `_`, `.`, `-`); if empty, it is made from the other keys."""
    site: SiteName = "mlp_out"
    """Site of an SAE (a transcoder reads mlp_in and writes mlp_out)."""
    files: Annotated[ExpandedPath, AfterValidator(_has_layer)] | None = None
    """Published transcoders (Dunefsky et al. 2024) to import instead of training: a path with `{layer}` in place of the
    layer's index. Such a run needs `name`, the files' `width` and `act: relu`; the training keys do not apply."""

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
        """Whether the run is imported from files instead of trained."""
        return self.files is not None

    def file(self, layer: int) -> str:
        """File of one layer of an imported run."""
        assert self.files is not None
        return self.files.replace("{layer}", str(layer))

    @property
    def site_in(self) -> SiteName:
        """Site that the dictionary reads."""
        return "mlp_in" if self.kind == "transcoder" else self.site

    @property
    def site_out(self) -> SiteName:
        """Site that the dictionary reconstructs."""
        return "mlp_out" if self.kind == "transcoder" else self.site


def run_name(run: Run, shared: dict[str, Any]) -> str:
    """Name of a run: kind, act with its parameter, width, and every key that differs from `shared` or the default."""
    parameter = "k" if run.act in ("topk", "batchtopk") else "sparsity"
    value = str(run.k) if parameter == "k" else _scientific(run.sparsity)
    parts = ["tc" if run.kind == "transcoder" else "sae", f"{run.act}{value}", str(run.width)]
    if run.kind == "sae" and run.site != "mlp_out":
        parts.append(run.site)
    for key, field in type(run).model_fields.items():
        setting = getattr(run, key)
        # the number of processes does not change what a run is
        if key in ("name", "kind", "act", "width", "site", "k", "sparsity", "processes", "split"):
            continue
        if setting != shared.get(key, field.default):
            parts.append(key if setting is True else f"no_{key}" if setting is False else f"{key}{setting}")
    return "-".join(parts)


def _scientific(value: float) -> str:
    """Shortest scientific notation: 1e-3, 2.5e-4."""
    digits, exponent = f"{value:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def expand_sweep(training: dict[str, Any], sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Keys of each run: the sweep's keys override the shared ones, and lists expand into their product."""
    merged = {**training, **sweep}
    combinations = itertools.product(*(as_list(value) for value in merged.values()))
    return [dict(zip(merged, values, strict=True)) for values in combinations]
