"""Losses and probabilities in blocks equal those of complete logits in float64, for any vocabulary and any head."""

import pytest
import torch
from tests.models import VOCABULARY, tiny_model
from torch import nn

from circuitloom.evaluation.metrics import compare_predictions
from circuitloom.language_model import lm_head as module
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.lm_head import LMHead, NextTokenScores, find_lm_head
from circuitloom.language_model.model import LanguageModel, load_model

TOKENS = torch.tensor([[1, 7, 9, 5, 30]])


def draw(
    vocabulary: int, rows: int, d: int = 16
) -> tuple[LMHead, dict[str, torch.Tensor], torch.Tensor, nn.Linear]:
    """A head with a bias, the hidden states of two models, and next tokens. Logits have a standard deviation of 4."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, d, generator=generator)
    bias, hidden = torch.randn(vocabulary, generator=generator), torch.randn(rows, d, generator=generator)
    changed = hidden + 0.3 * torch.randn(rows, d, generator=generator)
    linear = nn.Linear(d, vocabulary)
    linear.weight.data, linear.bias.data = weight, bias
    head = LMHead(lambda x, tokens: torch.addmm(bias[tokens], x, weight[tokens].T), vocabulary)
    token = torch.randint(0, vocabulary, (rows,), generator=generator)
    return head, {"original": hidden, "model": changed, "same": hidden}, token, linear.requires_grad_(False)


@pytest.mark.parametrize("divisible", [True, False])
@pytest.mark.parametrize("vocabulary", [5, 1000, 70_001])
def test_losses_and_divergences_equal_float64_to_a_millionth(vocabulary, divisible, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(module, "CACHE_ELEMENTS", 4096)
    head, hidden, token, linear = draw(vocabulary, 41)
    if not divisible:
        head = LMHead(lambda x, tokens: linear(x)[:, tokens], vocabulary, divisible=False)
    log_p = {key: linear.double()(rows.double()).log_softmax(1) for key, rows in hidden.items()}
    linear.float()
    sums = compare_predictions(hidden, head, token, "original")
    for key, found in sums.items():
        expected = -log_p[key].gather(1, token[:, None]).mean()
        assert found.ce == pytest.approx(float(expected), abs=1e-6)
        divergence = (log_p["original"].exp() * (log_p["original"] - log_p[key])).sum(1).mean()
        assert found.kl == pytest.approx(float(divergence), abs=1e-6)
    assert sums["model"].kl > 0.01
    losses = head.losses(hidden["model"], token)
    torch.testing.assert_close(losses, -log_p["model"].gather(1, token[:, None])[:, 0], atol=1e-5, rtol=0)


def test_no_block_exceeds_its_bounds(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(module, "CACHE_ELEMENTS", 1024)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 4096)
    sizes = []
    for divisible in (True, False):
        head, hidden, token, _ = draw(1000, 50)

        def logits(x, tokens, compute=head.logits):
            sizes.append(len(x) * (tokens.stop - tokens.start))
            return compute(x, tokens)

        compare_predictions(hidden, LMHead(logits, 1000, divisible), token, "original")
        assert max(sizes) <= (1024 if divisible else 4096)


def test_the_work_of_a_comparison_is_reported_block_by_block(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(module, "CACHE_ELEMENTS", 1600)
    head, hidden, token, _ = draw(1000, 50)
    shares = []
    compare_predictions(hidden, head, token, "original", shares.append)
    # 16 of 50 predictions and 100 of 1,000 tokens, or the last 2 predictions and 800 tokens
    assert max(shares) == pytest.approx(0.032)
    assert sum(shares) == pytest.approx(1)


def test_large_logits_neither_overflow_nor_vanish():
    # exp(200) overflows float32, and a block of -inf has no largest logit
    logits = torch.tensor([[-torch.inf, -torch.inf, 200.0, 199.0], [0.0, -1.0, -500.0, -600.0]])
    scores = NextTokenScores(torch.tensor([3, 1]))
    for tokens in (slice(0, 2), slice(2, 4)):
        scores.add(logits[:, tokens].clone(), tokens)
    expected = -logits.double().log_softmax(1)[[0, 1], [3, 1]]
    torch.testing.assert_close(scores.loss, expected, atol=1e-6, rtol=1e-6)


def test_no_predictions_give_no_sums():
    head, hidden, token, _ = draw(10, 3)
    assert compare_predictions({"a": hidden["model"][:0]}, head, token[:0], "a")["a"].n == 0
    assert head.losses(hidden["model"][:0], token[:0]).shape == (0,)


@pytest.fixture
def model(tmp_path) -> LanguageModel:
    return load_model(tiny_model("llama", tmp_path / "llama"), device="cpu")


def assert_gives_the_models_logits(model: LanguageModel, divisible: bool) -> None:
    head = find_lm_head(model)
    assert head.divisible == divisible
    logits = model.logits(TOKENS)[0]
    [hidden] = capture(model, TOKENS, [Site("unembedding_in")]).values()
    torch.testing.assert_close(head.logits(hidden[0], slice(2, 50)), logits[:, 2:50])
    torch.testing.assert_close(head.probabilities(hidden[0, 3]), logits[3].softmax(-1))
    probabilities, tokens = head.most_likely(hidden[0], 4)
    expected = logits.softmax(-1).topk(4)
    torch.testing.assert_close(probabilities, expected.values)
    assert torch.equal(tokens, expected.indices)
    assert head.most_likely(hidden[0], 1000)[0].shape == logits.shape


@pytest.mark.parametrize("key", [None, "logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_the_head_applies_scales_and_soft_caps(key, model):
    if key:
        setattr(model.module.config, key, 0.5)
        # the modules of Llama read none of these keys
        change = {
            "logit_scale": lambda x: x * 0.5,
            "logits_scaling": lambda x: x / 0.5,
            "final_logit_softcapping": lambda x: (x / 0.5).tanh() * 0.5,
        }[key]
        model.module.register_forward_hook(lambda _m, _args, y: setattr(y, "logits", change(y.logits)))
    assert_gives_the_models_logits(model, divisible=True)


def test_a_model_that_changes_its_logits_runs_its_own_code(model):
    model.module.register_forward_hook(lambda _m, _args, y: setattr(y, "logits", y.logits.tanh()))
    assert_gives_the_models_logits(model, divisible=False)


def test_a_padded_vocabulary_counts_in_the_probabilities(model):
    # the unembedding has more rows than the tokenizer has tokens
    model.module.resize_token_embeddings(VOCABULARY + 11)
    model.module.requires_grad_(False)
    assert find_lm_head(model).vocabulary == VOCABULARY + 11
    assert_gives_the_models_logits(model, divisible=True)


def test_an_unembedding_of_another_class_computes_all_logits(model):
    class Other(nn.Linear):
        pass

    other = Other(16, VOCABULARY, bias=False)
    other.weight = model.unembedding.weight
    model.module.lm_head = other
    assert_gives_the_models_logits(model, divisible=False)


def test_logits_that_depend_on_other_tokens_are_refused(model):
    seen = {}
    model.mlp(0).register_forward_pre_hook(lambda _m, args: seen.update(x=args[0].mean()))
    model.module.register_forward_hook(lambda _m, _args, y: setattr(y, "logits", y.logits * seen["x"]))
    with pytest.raises(ValueError, match="depend on more than its last hidden state; choose another model"):
        find_lm_head(model)
