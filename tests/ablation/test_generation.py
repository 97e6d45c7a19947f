"""Steered generation: the cache changes nothing, edits that change nothing give KL 0, and KL equals a pass by hand."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.architectures import NAMES
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.conftest import COMMON
from tests.models import CONTEXT, _tokenizer

from circuitloom.ablation.generation import (
    NO_CACHE,
    Sampling,
    SteeredText,
    TextGenerator,
    TokenChoice,
    find_ends,
)
from circuitloom.config.circuits import parse_changes
from circuitloom.corpus.prompt_text import PromptText, read_prompt
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.dictionaries.cross_layer import LayerDictionary
from circuitloom.language_model.decoding import GrowingText
from circuitloom.language_model.hooks import Edit, Site, capture, edited

TEXT = "w9 w20 w31 w9 w44 w20 w17"
TOKENS = [1, 9, 20, 31, 9, 44, 20, 17]
BREAK = "w9 w20 <bos> w9 w44 w20 w17"
SLOW = [pytest.param(name, marks=() if COMMON.search(name) else pytest.mark.slow) for name in NAMES]
KINDS = ("transcoder", "skip transcoder", "cross-layer")


def sae(site: str, layer: int = 1) -> dict[int, LayerDictionary]:
    """A random SAE of any site, at one layer."""
    own = make_dictionaries(None, site_in=site, site_out=site, act="relu", k=None)
    return {layer: own[layer]}


def generator(
    folder: Path, architecture: str = "llama", **runs: Mapping[int, LayerDictionary]
) -> TextGenerator:
    """A generator on a tiny model. Its text never ends early."""
    model = load_tiny(architecture, folder)
    made = runs or {"tc": make_dictionaries(model)}
    # outside the model's folder: some architectures have a tokenizer class of their own
    _tokenizer().save_pretrained(folder / "tokenizer")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    found = TextGenerator(model, tokenizer, CONTEXT, made.__getitem__, next(iter(made)))
    found.ends = set()
    return found


def steer(made: TextGenerator, edits: str, tokens: int = 6, text: str = TEXT, **options) -> SteeredText:
    return made.generate(text, parse_changes(edits), Sampling(tokens), **options)


def prompt(made: TextGenerator, text: str = TEXT) -> PromptText:
    return read_prompt(text, made.tokenizer, made.context, special=True)


def active(made: TextGenerator, run: str, layer: int, site: str = "mlp_in") -> tuple[int, int, float]:
    """Position, number and activation of the feature of a layer that fires most at the last position of the text."""
    dictionary = made.dictionaries(run)[layer]
    x = capture(made.language_model, torch.tensor([TOKENS]), [Site(site, layer)])[Site(site, layer)]
    z = dictionary.encode(x[0])[-1]
    return len(TOKENS) - 1, int(z.argmax()), float(z.max())


def by_hand(
    made: TextGenerator,
    result: SteeredText,
    edits: Mapping[Site, Edit],
    nested: Mapping[Site, Edit] | None = None,
) -> torch.Tensor:
    """KL(edited || original) at the positions that predict the steered tokens, from passes over the complete text."""
    token = torch.tensor([[*TOKENS, *result.steered.token[:-1]]])
    model = made.language_model
    with edited(model, edits), edited(model, nested or {}):
        after = model.logits(token)[0].double().log_softmax(-1)
    before = model.logits(token)[0].double().log_softmax(-1)
    return (after.exp() * (after - before)).sum(-1)[len(TOKENS) - 1 :]


@pytest.mark.parametrize("architecture", SLOW)
def test_logits_with_the_cache_equal_those_without(architecture, tmp_path):
    """Beyond the sliding windows of 4 tokens, and with edits of two runs."""
    runs = {"tc": make_dictionaries(None, act="relu", k=None), "sae": sae("attn_added")}
    made = generator(tmp_path, architecture, **runs)
    hooks = made.make_hooks(prompt(made), parse_changes("set 1/3=4; add sae:1/5=3"), len(TOKENS) + 9, "all")
    cached, whole = GrowingText(made.language_model), GrowingText(made.language_model, cached=False)
    new, moved = TOKENS, 0.0
    for _ in range(8):
        with hooks.applied(lambda: cached.start):
            one = cached.append(new)
        with hooks.applied():
            other = whole.append(new)
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        plain = made.language_model.logits(torch.tensor([whole.token]))[0, -1]
        moved += float((plain - other).abs().max())
        new = [int(other.argmax())]
    assert cached.cached and moved > 0.1


def test_the_untouched_text_is_that_of_transformers(tmp_path):
    made = generator(tmp_path)
    options = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    found = made.language_model.module.generate(torch.tensor([TOKENS]), eos_token_id=2, **options)
    made.ends = {2}
    result = steer(made, "set 1/3=9", 12)
    assert result.untouched.token == found[0, len(TOKENS) :].tolist()
    # the text has no special tokens
    assert result.untouched.text.split() == [f"w{number}" for number in result.untouched.token if number > 3]


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_by_1_changes_nothing(kind, tmp_path):
    made = generator(tmp_path, run=make_dictionaries(None, kind))
    _, feature, _ = active(made, "run", 0)
    result = steer(made, f"scale 0/{feature}=1; scale 1/3=1")
    assert not result.kl.any() and result.steered.token == result.untouched.token


def test_setting_a_feature_to_its_own_value_changes_nothing(tmp_path):
    made = generator(tmp_path)
    position, feature, value = active(made, "tc", 1)
    assert steer(made, f"set 1/{feature}@{position}={value!r}").kl.max() < 1e-9
    assert steer(made, f"set 1/{feature}@{position}={2 * value!r}").kl.max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_kl_equals_passes_with_what_the_edits_add(kind, tmp_path):
    """Feature f is set to 3 and everything else of its layer is kept: each output gets (3 - z_f) times its row."""
    runs = {"run": make_dictionaries(None, kind)}
    made = generator(tmp_path, **runs)
    _, feature, _ = active(made, "run", 0)
    result = steer(made, f"set 0/{feature}=3")
    dictionary, z = runs["run"][0], []

    def add(output: int):
        def edit(x, y):
            if output == 0:
                z[:] = [dictionary.encode(x)[..., feature]]
            change = (3 - z[0]).index_fill(1, torch.tensor([0]), 0.0)
            return y + change[..., None] * dictionary.decoder(output)[feature]

        return edit

    hand = by_hand(made, result, {Site("mlp_out", output): add(output) for output in dictionary.outputs})
    torch.testing.assert_close(result.kl, hand, atol=1e-8, rtol=1e-4)
    assert hand.min() > 1e-7


def test_keeping_no_feature_leaves_bias_skip_path_and_error(tmp_path):
    """All 40 features are ablated in two edits of the same layer."""
    runs = {"run": make_dictionaries(None, "skip transcoder")}
    made = generator(tmp_path, **runs)
    result = steer(made, "keep 1/0; ablate 1/0")
    dictionary = runs["run"][1]

    def bare(x, y):
        rest = y - dictionary.encode(x) @ dictionary.W_dec
        return torch.cat([y[:, :1], rest[:, 1:]], 1)

    hand = by_hand(made, result, {Site("mlp_out", 1): bare})
    torch.testing.assert_close(result.kl, hand, atol=1e-8, rtol=1e-4)
    assert hand.min() > 1e-7


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_added", "mlp_in", "mlp_out", "mlp_added"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_features_of_two_runs_are_edited_together(architecture, site, tmp_path):
    """The SAE reads what the transcoder's edit of an earlier layer leaves."""
    runs = {"tc": make_dictionaries(None, site_out="mlp_added"), "sae": sae(site)}
    made = generator(tmp_path, architecture, **runs)
    result = steer(made, "set 0/3=2; scale sae:1/5=3; add sae:1/6=2")
    transcoder, other = runs["tc"][0], runs["sae"][1]

    def set_3(x, y):
        return skip_first(y, y + (2 - transcoder.encode(x)[..., [3]]) * transcoder.W_dec[3])

    def scale_and_add(_x, y):
        z = other.encode(y)
        return skip_first(y, y + 2 * z[..., [5]] * other.W_dec[5] + 2 * other.W_dec[6])

    def skip_first(y, new):
        return torch.cat([y[:, :1], new[:, 1:]], 1)

    hand = by_hand(made, result, {Site("mlp_added", 0): set_3}, {Site(site, 1): scale_and_add})
    torch.testing.assert_close(result.kl, hand, atol=1e-8, rtol=1e-4)
    assert hand.min() > 1e-7


@pytest.mark.parametrize(
    ("positions", "edits", "expected"),
    [
        ("all", "add 1/3=1", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        ("prompt", "add 1/3=1", [1, 2, 3, 4, 5, 6, 7]),
        ("generated", "add 1/3=1", [8, 9, 10, 11, 12]),
        ("3,-1,9", "add 1/3=1", [3, 7, 9]),
        ("generated", "add 1/3@2=1", [2]),
    ],
)
def test_features_are_edited_at_the_named_positions(positions, edits, expected, tmp_path):
    made = generator(tmp_path)
    row, found = make_dictionaries(None)[1].W_dec[3], []
    hooks = made.make_hooks(prompt(made), parse_changes(edits), len(TOKENS) + 6, positions)
    text = GrowingText(made.language_model)
    # the comparison with a complete pass would be recorded, too
    text._checked = True
    values: list[torch.Tensor] = []
    record = {Site("mlp_out", 1): lambda _x, y: values.append(y) or y}
    with (
        edited(made.language_model, record),
        hooks.applied(lambda: text.start),
        edited(made.language_model, record),
    ):
        for new in (TOKENS, [11], [12], [13], [14], [15]):
            text.append(new)
            before, after = values[-2:]
            for i in ((after - before)[0].norm(dim=1) > 1e-3).nonzero()[:, 0].tolist():
                torch.testing.assert_close((after - before)[0, i], row, atol=1e-4, rtol=1e-4)
                found.append(text.start + i)
    assert found == expected


def test_separators_are_not_edited(tmp_path):
    made = generator(tmp_path)
    read = prompt(made, BREAK)
    hooks = made.make_hooks(read, parse_changes("add 1/3=1"), len(read.token) + 3, "all")
    assert read.token[3] == 1 and hooks.editable.tolist() == [
        i not in (0, 3) for i in range(len(read.token) + 3)
    ]
    with pytest.raises(ValueError, match="position 3 has '<bos>': features are edited neither"):
        steer(made, "add 1/3@3=1", text=BREAK, special=True)


def test_an_eos_ends_the_text(tmp_path):
    made, changes, sampling = generator(tmp_path), parse_changes("set 1/3=9"), Sampling(12, 2.0, seed=3)
    free = made.generate(TEXT, changes, sampling)
    assert find_ends(made.language_model, made.tokenizer) == {1, 2}
    tokens = free.steered.token
    end = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    made.ends = {tokens[end]}
    ended = made.generate(TEXT, changes, sampling)
    assert ended.steered.token == tokens[: end + 1] and ended.steered.ended and not free.steered.ended
    torch.testing.assert_close(ended.kl, free.kl[: end + 1], atol=1e-8, rtol=1e-4)


def test_a_seed_determines_the_text_and_nothing_else_does(tmp_path):
    made, changes = generator(tmp_path), parse_changes("scale 1/3=1")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = made.generate(TEXT, changes, Sampling(16, 1.0, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = made.generate(TEXT, changes, Sampling(16, 1.0, seed=5))
    other = made.generate(TEXT, changes, Sampling(16, 1.0, seed=6))
    assert one.steered.token == again.steered.token == one.untouched.token != other.steered.token
    greedy = steer(made, "scale 1/3=1", 16)
    assert made.generate(TEXT, changes, Sampling(16, 1.0, top_k=1)).steered.token == greedy.steered.token


def test_tokens_are_sampled_from_the_distribution_of_the_logits():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    choose = TokenChoice(Sampling(1, 0.5))
    share = torch.bincount(torch.tensor([choose(logits) for _ in range(8000)]), minlength=4) / 8000
    torch.testing.assert_close(share, (logits / 0.5).softmax(-1), atol=0.02, rtol=0)
    choose = TokenChoice(Sampling(1, 2.0, top_k=2))
    assert {choose(logits) for _ in range(200)} == {1, 2}


def test_a_model_without_a_cache_that_works_runs_the_complete_text(tmp_path):
    expected = steer(generator(tmp_path), "set 1/3=9", 8)
    made = generator(tmp_path)
    forward = made.language_model.module.forward

    def forgetful(tokens, past_key_values=None, **options):
        """Ignores what is in the cache."""
        return forward(tokens, **{**options, "use_cache": False})

    made.language_model.module.forward = forgetful
    result = steer(made, "set 1/3=9", 8)
    assert (
        result.steered.token == expected.steered.token and result.untouched.token == expected.untouched.token
    )
    assert not result.steered.cached and NO_CACHE in result.notes and not expected.notes

    made.language_model.module.forward = lambda tokens: forward(tokens)  # noqa: PLW0108
    assert steer(made, "set 1/3=9", 8).steered.token == expected.steered.token


@pytest.mark.parametrize(
    ("text", "edits", "tokens", "positions", "message"),
    [
        (" ".join(["w5"] * 40), "set 1/3=9", 4, "all", "has 41 tokens, the context is 32; shorten it"),
        (TEXT, "set 1/3=9", 25, "all", "8 tokens and 25 more are asked for.* 32; ask for at most 24"),
        (
            " ".join(["w5"] * 31),
            "set 1/3=9",
            4,
            "all",
            "32 tokens and 4 more are asked.* 32; shorten the prompt",
        ),
        (TEXT, "set 7/3=9", 4, "all", "layer 7 has no dictionary; choose from 0, 1, 2"),
        (TEXT, "set 1/40=9", 4, "all", "layer 1 has features 0 to 39, not 40"),
        (
            TEXT,
            "set 1/3@11=9",
            4,
            "all",
            "position 11 is outside the text of 8 tokens and 4 more; choose 1 to 10",
        ),
        (TEXT, "set 1/3=9", 4, "0", "position 0 has '<bos>': features are edited neither at the first"),
        (TEXT, "set 1/3=9", 4, "first", "'first' names no positions; write all, prompt, generated"),
        ("", "set 1/3=9", 4, "all", "the prompt is empty"),
    ],
)
def test_what_cannot_be_generated_is_refused(text, edits, tokens, positions, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        steer(generator(tmp_path), edits, tokens, text, positions=positions)


def test_features_that_read_one_site_and_write_another_are_refused(tmp_path):
    made = generator(tmp_path, run=make_dictionaries(None, site_in="resid_pre", site_out="mlp_out"))
    with pytest.raises(ValueError, match="run run: features of layer 0 read resid_pre and write mlp_out"):
        steer(made, "set 1/3=9")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "ask for at least 1"),
        ({"temperature": -1.0}, "temperature -1.0; give 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0, "temperature": 1.0}, "top-k 0; give at least 1"),
        ({"top_k": 5}, "top-k needs a temperature"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_values_that_are_not_finite_are_reported(tmp_path):
    with pytest.raises(ValueError, match="a next-token logit is not finite in float32"):
        steer(generator(tmp_path), "set 1/3=1e38; scale 1/3=1e30")
