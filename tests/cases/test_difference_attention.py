"""A hand-made induction head is told by its score: the token before the key meets the last token."""

from pathlib import Path

import pytest
import torch
from tests.models import CONTEXT, VOCABULARY, _save

from circuitloom.attribution.tracer import Tracer
from circuitloom.cases.claims import Bootstrap
from circuitloom.cases.difference.attention import attention_claims, attention_sentences, measure_attention
from circuitloom.corpus.templates import FINDING, TESTING, DrawnPrompt
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.language_model.model import LanguageModel, load_model

TOKEN, POSITION, PREVIOUS = (
    slice(VOCABULARY),
    slice(VOCABULARY, VOCABULARY + CONTEXT),
    slice(VOCABULARY + CONTEXT, 2 * VOCABULARY + CONTEXT),
)
"""Dimensions of the residual stream: one-hot tokens, positions and previous tokens."""
D = PREVIOUS.stop
INDUCTION = 1
"""Layer of the induction head. Layer 0 has a head that copies the previous token."""


def induction_model(folder: Path, matches: bool) -> LanguageModel:
    """Two layers with one head each. Without `matches`, the head of layer 1 reads tokens of even ids, whatever came
    before them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=D, n_layer=2, n_head=1, n_inner=8,
        bos_token_id=1, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = load_model(_save(GPT2LMHeadModel, config, folder / str(matches), 0), "float64", device="cpu")
    for name, parameter in model.module.named_parameters():
        parameter.data.fill_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
    module: torch.nn.Module = model.module
    state = dict(module.named_parameters())
    state["transformer.wte.weight"].data[:, TOKEN] = torch.eye(VOCABULARY).double()
    state["transformer.wpe.weight"].data[:, POSITION] = torch.eye(CONTEXT).double()
    for layer in range(2):
        read = state[f"transformer.h.{layer}.attn.c_attn.weight"].data
        queries, keys, values = read[:, :D], read[:, D : 2 * D], read[:, 2 * D :]
        if layer == 0:
            queries[POSITION, POSITION] = 2 * torch.eye(CONTEXT).double().roll(1, 0)
            keys[POSITION, POSITION] = 2 * torch.eye(CONTEXT).double()
            values[TOKEN, PREVIOUS] = torch.eye(VOCABULARY).double()
        elif matches:
            queries[TOKEN, TOKEN] = 2 * torch.eye(VOCABULARY).double()
            keys[PREVIOUS, TOKEN] = 2 * torch.eye(VOCABULARY).double()
        else:
            # the same query everywhere
            state[f"transformer.h.{layer}.attn.c_attn.bias"].data[0] = 20
            keys[TOKEN.start : TOKEN.stop : 2, 0] = 2
        if layer == INDUCTION:
            values[TOKEN, TOKEN] = torch.eye(VOCABULARY).double()
        state[f"transformer.h.{layer}.attn.c_proj.weight"].data.copy_(torch.eye(D).double())
    state["lm_head.weight"].data[:, TOKEN] = torch.eye(VOCABULARY).double()
    return model


def measure(folder: Path, matches: bool):
    model = induction_model(folder, matches)
    tracer = Tracer(model, load_tokenizer(str(folder / str(matches))), "none", {}, CONTEXT)
    # the answer is even, so that both heads read it, and the other tokens are odd
    drawn = [
        DrawnPrompt(
            f"w{first} w{answer} w{first + 2} w{first + 4} w{first}",
            f"logit w{answer} vs w{answer + 2}",
            half,
        )
        for half, first, answer in (
            (FINDING, 5, 30), (FINDING, 7, 40), (TESTING, 11, 20), (TESTING, 13, 24), (TESTING, 21, 50),
        )
    ]  # fmt: skip
    # the answer does not stand in this prompt
    drawn.append(DrawnPrompt("w5 w7 w9", "logit w6 vs w8", TESTING))
    return measure_attention(tracer, drawn)


def test_an_induction_head_s_lead_is_the_previous_token_that_meets_the_current_one(tmp_path):
    attention = measure(tmp_path, matches=True)
    assert attention is not None
    assert (attention.layer, attention.head) == (INDUCTION, 0)
    assert len(attention.pattern) == 3
    claims = {each.name: each for each in attention_claims(attention, 0.8, 0.8, 0.3, Bootstrap(200, 0.95, 0))}
    assert all(claim.holds for claim in claims.values()), claims
    assert claims["meets_current"].value == pytest.approx(1, abs=0.2)
    assert attention.frozen_error < 1e-5
    # without the copied token, the logit of the answer falls
    assert float(attention.difference_drop.min()) > 0.1
    sentences = " ".join(attention_sentences(attention))
    assert "Head 1.0 reads the right answer's place" in sentences and "current with previous +" in sentences


def test_a_head_that_reads_a_kind_of_token_does_not_need_the_token_before(tmp_path):
    attention = measure(tmp_path, matches=False)
    assert attention is not None
    claims = {each.name: each for each in attention_claims(attention, 0.8, 0.8, 0.3, Bootstrap(200, 0.95, 0))}
    assert claims["attends"].holds
    others = ("previous_token", "meets_current", "key_needs_previous", "query_needs_current")
    assert not any(claims[name].holds for name in others)


@pytest.mark.parametrize("matches", [True, False])
def test_the_lead_is_the_score_less_the_mean_of_the_other_keys_but_the_first(matches, tmp_path):
    attention = measure(tmp_path, matches)
    assert attention is not None
    tracer = Tracer(
        induction_model(tmp_path, matches), load_tokenizer(str(tmp_path / str(matches))), "none", {}, CONTEXT
    )
    # the first prompt of the testing half, in which the answer w20 stands at position 2
    model = tracer.linearize("w11 w20 w13 w15 w11")
    score = tracer.scores(model).layer(INDUCTION).score[0, -1]
    others = score[[at for at in range(1, len(score)) if at != 2]].mean()
    assert abs(float(others)) > 1e-3
    assert float(attention.lead[0].sum()) == pytest.approx(float(score[2] - others), rel=1e-6)


def test_no_answer_in_the_prompts_leaves_nothing_to_measure(tmp_path):
    model = induction_model(tmp_path, True)
    tracer = Tracer(model, load_tokenizer(str(tmp_path / "True")), "none", {}, CONTEXT)
    drawn = [DrawnPrompt("w5 w7 w9", "logit w6 vs w8", half) for half in (FINDING, TESTING)]
    assert measure_attention(tracer, drawn) is None
