"""Generate text while features are edited, next to the untouched continuation of the same prompt.

1. The edits, of one or several runs, become hooks (`feature_edits.feature_hooks`). The first position and separators
   are never edited.
2. The prompt runs through the model. Then each token is chosen from the logits, appended, and run with the model's
   cache (`language_model.decoding`). An EOS or a separator ends the text.
3. The same is done without hooks and with the same random numbers: the untouched continuation.
4. The complete steered text runs through the model with and without hooks (teacher forcing). At each position that
   predicts a token of the continuation, KL(steered || untouched) of the two next-token distributions is measured.

`open_generator` makes a `TextGenerator` from the results of a study.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..attribution.tracer import default_run, require_results
from ..config.circuits import RunChange
from ..config.model_shape import shape_of
from ..core.layout import Layout
from ..corpus.prompt_text import PromptText, read_prompt
from ..corpus.token_arrays import scored_positions
from ..corpus.token_names import token_name
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..dictionaries.cross_layer import LayerDictionary, load_run
from ..language_model.decoding import GrowingText
from ..language_model.hooks import Site, capture, edited
from ..language_model.lm_head import find_lm_head
from ..language_model.model import LanguageModel, load_model
from .feature_edits import FeatureEdit, RunSites, feature_hooks, place_edits

KL_ELEMENTS = 2**24
"""Largest number of logits per block when distributions are compared, 128 MB in float64."""
ALL, PROMPT, GENERATED = "all", "prompt", "generated"
NO_CACHE = "the model's key-value cache is missing or gives other logits; each token runs the complete text"
"""Note on a model that generates without its cache."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Raises ValueError if a value is out of range.
    """

    tokens: int = 40
    """Largest number of generated tokens."""
    temperature: float = 0.0
    """Logits are divided by it. 0: the most likely token is taken, without sampling."""
    top_k: int | None = None
    """Tokens are sampled from this number of most likely ones. None: from all."""
    seed: int = 0
    """Seed of the random numbers, which do not depend on torch's global generator."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"{self.tokens} tokens; ask for at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature}; give 0 (no sampling) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k {self.top_k}; give at least 1")
        if self.top_k is not None and not self.temperature:
            raise ValueError("top-k needs a temperature above 0; without one, the most likely token is taken")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}; give a number from 0 to 2^63 - 1")


@dataclass(frozen=True)
class Continuation:
    """Generated tokens after a prompt."""

    token: list[int]
    """Token ids. If an EOS or a separator ended the text, it is the last one."""
    text: str
    """The text of the tokens, without special tokens."""
    ended: bool
    """Whether an EOS or a separator ended the text. Otherwise, it has as many tokens as asked for."""
    seconds: float
    """Time from the prompt to the last token."""
    cached: bool
    """Whether the model's key-value cache was used."""


@dataclass(frozen=True)
class SteeredText:
    """The steered continuation of a prompt, the untouched one, and how far the edits move each prediction."""

    prompt: PromptText
    steered: Continuation
    untouched: Continuation
    kl: Float64[Tensor, " token"]
    """KL(steered || untouched) in nats, for each token of the steered continuation. Both distributions are those from
    which this token was chosen, before temperature and top-k, with the same tokens as context: the prompt and the
    steered continuation so far."""
    strings: list[str]
    """Name of each token id."""

    @property
    def notes(self) -> list[str]:
        """Lines that say how the prompt was read, and whether the cache was used."""
        return [*self.prompt.notes, *([] if self.steered.cached and self.untouched.cached else [NO_CACHE])]

    def names(self, token: Sequence[int]) -> list[str]:
        """Returns the names of tokens."""
        return [token_name(self.strings, number) for number in token]


class TextGenerator:
    """Generates text with one model while features of any of its dictionaries are edited.

    In the example, the activation of feature 7 of layer 1 is set to 30 at every position.

    >>> from circuitloom.ablation.generation import Sampling
    >>> from circuitloom.config.circuits import parse_changes
    >>> generator = open_generator("results/quickstart")
    >>> result = generator.generate("he was caught", parse_changes("set 1/7=30"), Sampling(tokens=10))
    >>> result.steered.text, result.untouched.text, result.kl
    """

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: Tokenizer,
        context: int,
        load: Callable[[str], Mapping[int, LayerDictionary]],
        default_run: str | None = None,
    ) -> None:
        """`context` is the largest number of tokens of a text. `load` returns the dictionaries of a run, and raises
        ValueError if there is no such run. `default_run` is the run of changes that name none."""
        self.language_model, self.tokenizer, self.context = language_model, tokenizer, context
        self.default_run = default_run
        self.strings = tokenizer.strings()
        self.ends = find_ends(language_model, tokenizer)
        self._load = load
        self._runs: dict[str, dict[int, LayerDictionary]] = {}
        self._head = find_lm_head(language_model)

    def dictionaries(self, run: str) -> Mapping[int, LayerDictionary]:
        """Returns the dictionaries of a run by layer. They are loaded once.

        Raises ValueError if there is no such run, or if its dictionaries are neither SAEs nor transcoders.
        """
        if run not in self._runs:
            found = {layer: each.to(self.language_model.device) for layer, each in self._load(run).items()}
            for layer, each in found.items():
                if not (each.is_sae or each.is_transcoder):
                    raise ValueError(
                        f"run {run}: features of layer {layer} read {each.site_in} and write {each.site_out}, and such "
                        "features cannot be edited; name a run of SAEs, or of transcoders"
                    )
            self._runs[run] = found
        return self._runs[run]

    @torch.inference_mode()
    def generate(
        self,
        prompt: str,
        changes: Sequence[RunChange],
        sampling: Sampling = Sampling(),
        positions: str = ALL,
        special: bool = False,
        report: Callable[[str], object] = lambda _: None,
    ) -> SteeredText:
        """Returns the steered and the untouched continuation of a prompt.

        Edits apply in the order of `changes`; at the same site, a run's features read what edits of earlier runs leave.
        `positions` is where features without a position of their own are edited: `all`, `prompt`, `generated`, or
        numbers separated by commas. Negative numbers count from the end of the prompt. `special` is that of
        `read_prompt`. `report` is called with progress messages. Raises ValueError if the prompt cannot be read, if
        prompt and tokens exceed the context, or if a run, feature or position does not exist.
        """
        read = read_prompt(prompt, self.tokenizer, self.context, special)
        length = len(read.token) + sampling.tokens
        if length > self.context:
            left = self.context - len(read.token)
            raise ValueError(
                f"the prompt has {len(read.token)} tokens and {sampling.tokens} more are asked for, the model's "
                f"context is {self.context}; {f'ask for at most {left}' if left else 'shorten the prompt'}"
            )
        hooks = self.make_hooks(read, changes, length, positions)
        report("generating the steered text")
        steered = self.continue_text(read, sampling, hooks)
        report("generating the untouched text")
        untouched = self.continue_text(read, sampling, None)
        report("comparing the distributions")
        return SteeredText(read, steered, untouched, self._compare(read, steered, hooks), self.strings)

    def make_hooks(
        self, read: PromptText, changes: Sequence[RunChange], length: int, positions: str = ALL
    ) -> "SteeringHooks":
        """Returns the edits of a text of at most `length` tokens that begins with the prompt `read`.

        `changes`, `positions` and the errors are those of `generate`.
        """
        prompt = torch.from_numpy(read.token)
        editable = torch.ones(length, dtype=torch.bool)
        # generated separators end the text, so that no pass has one
        editable[: len(prompt)] = scored_positions(prompt[None], self.tokenizer.separator_id)[0]

        def resolve(position: int) -> int:
            # the last token is chosen, and not run
            place = position + len(prompt) if position < 0 else position
            if not 0 <= place < length - 1:
                raise ValueError(
                    f"position {position} is outside the text of {len(prompt)} tokens and {length - len(prompt)} more; "
                    f"choose 1 to {length - 2}"
                )
            if not editable[place]:
                raise ValueError(
                    f"position {position} has {self.strings[prompt[place]]!r}: features are edited neither at the "
                    "first position nor at separators; choose another"
                )
            return place

        at = parse_positions(positions, len(prompt), length, resolve).to(self.language_model.device)
        edits: dict[str, dict[int, FeatureEdit]] = {}
        for named, change in changes:
            run = named or self.default_run
            if run is None:
                raise ValueError("the study has no run of transcoders; name a run of SAEs: RUN:LAYER/NUMBER")
            if change.kind == "patch":
                raise ValueError(
                    "a patch needs a prompt of the same length, and a generated text grows; clamp instead"
                )
            own = edits.setdefault(run, {})
            for layer, edit in place_edits(self.dictionaries(run), change, at, resolve).items():
                own[layer] = own[layer].then(edit) if layer in own else edit
        sites = {run: RunSites(self.dictionaries(run)) for run in edits}
        return SteeringHooks(self.language_model, sites, edits, editable.to(self.language_model.device))

    @torch.inference_mode()
    def continue_text(
        self, read: PromptText, sampling: Sampling, hooks: "SteeringHooks | None" = None
    ) -> Continuation:
        """Returns the continuation of the prompt `read`, with the edits `hooks`, or untouched without.

        Raises ValueError if a logit is not finite.
        """
        started = time.perf_counter()
        text, choose = GrowingText(self.language_model), TokenChoice(sampling)
        chosen: list[int] = []
        with hooks.applied(lambda: text.start) if hooks is not None else ExitStack():
            new = read.token.tolist()
            while len(chosen) < sampling.tokens and not (chosen and chosen[-1] in self.ends):
                logits = text.append(new)
                new = [choose(logits)]
                chosen += new
                if not logits[new[0]].isfinite():
                    if hooks is not None:
                        raise ValueError(
                            f"with these edits, a next-token logit is not finite in {self.language_model.dtype}; use "
                            "smaller values"
                        )
                    self.language_model.check_finite(logits, "a next-token logit")
        seconds = time.perf_counter() - started
        ended = chosen[-1] in self.ends
        return Continuation(chosen, self._text(read, chosen), ended, seconds, text.cached)

    def _text(self, read: PromptText, chosen: list[int]) -> str:
        """Returns the text that tokens add to the prompt."""
        # decoders drop a space at the start of a text, so the prompt is decoded too
        known = [number for number in chosen if number < self.tokenizer.vocabulary]
        before = self.tokenizer.backend.decode(read.token.tolist())
        complete = self.tokenizer.backend.decode([*read.token.tolist(), *known])
        if complete.startswith(before):
            return complete[len(before) :]
        return self.tokenizer.backend.decode(known)

    def _compare(
        self, read: PromptText, steered: Continuation, hooks: "SteeringHooks"
    ) -> Float64[Tensor, " token"]:
        """Returns KL(steered || untouched) at the positions that predict the tokens of the steered continuation."""
        token = torch.tensor([*read.token.tolist(), *steered.token[:-1]])[None]
        site, first = Site("unembedding_in"), len(read.token) - 1
        with hooks.applied():
            after = capture(self.language_model, token, [site])[site][0, first:]
        before = capture(self.language_model, token, [site])[site][0, first:]
        rows = max(1, KL_ELEMENTS // self._head.vocabulary)
        everything = slice(0, self._head.vocabulary)
        parts = []
        for hidden in zip(after.split(rows), before.split(rows), strict=True):
            p, q = (self._head.logits(each, everything).double().log_softmax(-1) for each in hidden)
            parts.append((p.exp() * (p - q)).sum(-1))
        # rounding can give a sum below 0
        return torch.cat(parts).clamp(min=0).cpu()


@dataclass(frozen=True)
class SteeringHooks:
    """Edits of features of several runs, for one text."""

    language_model: LanguageModel
    sites: Mapping[str, RunSites]
    edits: Mapping[str, Mapping[int, FeatureEdit]]
    editable: Bool[Tensor, " position"]
    """Positions of the text that are neither the first one nor separators."""

    @contextmanager
    def applied(self, start: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Within the context, passes of the model are edited. `start` is that of `feature_hooks`."""
        with ExitStack() as stack:
            for run, edits in self.edits.items():
                hooks = feature_hooks(self.sites[run], edits, self.editable, start)
                stack.enter_context(edited(self.language_model, hooks))
            yield


class TokenChoice:
    """Chooses next tokens. At each position, the same random numbers belong to the same tokens, whatever the logits
    are: two texts of one seed differ only where their distributions do."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # on the CPU, so that random numbers do not depend on the device
        self._random = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """Returns a token id, given the logits of the vocabulary."""
        if not self._sampling.temperature:
            return int(logits.argmax())
        scores = logits.cpu() / self._sampling.temperature
        noise = torch.empty_like(scores).exponential_(generator=self._random)
        if self._sampling.top_k is not None:
            lowest = scores.topk(min(self._sampling.top_k, len(scores))).values[-1]
            scores = scores.masked_fill(scores < lowest, float("-inf"))
        # the Gumbel-max trick: argmax of log p + Gumbel noise is a sample of p
        return int((scores - noise.clamp(min=torch.finfo(noise.dtype).tiny).log()).argmax())


def parse_positions(
    text: str, prompt: int, length: int, resolve: Callable[[int], int]
) -> Bool[Tensor, " position"]:
    """Returns which of `length` positions `text` names: `all`, `prompt`, `generated`, or numbers separated by commas.

    The first `prompt` positions are those of the prompt. `resolve` converts a number to a position, and raises
    ValueError if there is none. Raises ValueError for any other text.
    """
    at = torch.zeros(length, dtype=torch.bool)
    if text in (ALL, PROMPT, GENERATED):
        at[prompt if text == GENERATED else 0 : prompt if text == PROMPT else length] = True
        return at
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{text!r} names no positions; write {ALL}, {PROMPT}, {GENERATED}, or numbers such as 3,4"
        ) from None
    at[[resolve(number) for number in numbers]] = True
    return at


def find_ends(model: LanguageModel, tokenizer: Tokenizer) -> set[int]:
    """Returns the tokens that end a text: the tokenizer's EOS and separator, and those special tokens that the model's
    generation config names."""
    named = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    listed = [named] if isinstance(named, int) else named or []
    special = set(tokenizer.special_tokens.values())
    found = {tokenizer.eos_id, tokenizer.separator_id, *(number for number in listed if number in special)}
    return {number for number in found if number is not None}


def open_generator(folder: Path | str, run: str | None = None, dtype: str = "float32") -> TextGenerator:
    """Open a text generator for the results of a study.

    `run` is the run of changes that name none; by default, it is that of `open_tracer`. `dtype` is the model's number
    format. Raises ValueError if a part of the results is missing, or if there is no such run.

    >>> generator = open_generator("results/quickstart", run="tc-topk16-1024")
    """
    layout = Layout(Path(folder))
    require_results(layout)
    model, tokenizer = load_model(layout.model, dtype), load_tokenizer(str(layout.tokenizer.resolve()))
    generator = make_generator(layout.root, model, tokenizer, run or default_run(layout.root))
    if run is not None:
        generator.dictionaries(run)
    return generator


def make_generator(
    folder: Path, language_model: LanguageModel, tokenizer: Tokenizer, run: str | None
) -> TextGenerator:
    """Returns a text generator for the results of a study in `folder`, whose model and tokenizer are loaded.

    Its context is that of the model, which may be larger than that of the study's text. `run` is the run of changes
    that name none.
    """
    config = json.loads((Layout(folder).model / "config.json").read_text())
    return TextGenerator(
        language_model,
        tokenizer,
        shape_of(config).context,
        lambda name: load_run(folder, name, language_model.device, mapped=True),
        run,
    )
