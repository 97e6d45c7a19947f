"""Rules are fitted on the positions given, and hold where all their conditions do."""

import torch

from circuitloom.cases.feature.measurements import Condition, Rule, agreement, fit_rule

VOCABULARY = 20


def make_text(seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (40, 60), generator=torch.Generator().manual_seed(seed))


def named(*tokens: int) -> torch.Tensor:
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[list(tokens)] = True
    return mask


def test_a_condition_holds_where_its_tokens_stand_at_its_offset() -> None:
    token = torch.tensor([[5, 6, 5, 7]])
    assert Condition(0, named(5)).holds(token).tolist() == [[True, False, True, False]]
    assert Condition(-1, named(5)).holds(token).tolist() == [[False, True, False, True]]
    assert Condition(-4, named(5)).holds(token).tolist() == [[False] * 4]


def test_a_rule_holds_where_all_its_conditions_do() -> None:
    token = torch.tensor([[5, 6, 5, 7, 6]])
    rule = Rule((Condition(0, named(6)), Condition(-1, named(5))))
    assert rule.holds(token).tolist() == [[False, True, False, False, False]]
    assert rule.offsets == [0, -1]


def test_a_conjunction_is_found_among_offsets_that_do_not_matter() -> None:
    token = make_text()
    truth = Rule((Condition(0, named(3, 4)), Condition(-2, named(7, 8, 9))))
    fires = truth.holds(token)
    rule = fit_rule(token, fires, torch.ones_like(fires), [0, -1, -2, -3], VOCABULARY)
    assert rule.offsets == [0, -2]
    unseen = make_text(1)
    assert torch.equal(rule.holds(unseen), truth.holds(unseen))


def test_positions_outside_where_do_not_change_the_rule() -> None:
    token = make_text()
    fires = Condition(0, named(3)).holds(token)
    where = torch.ones_like(fires)
    where[:, 30:] = False
    fires[:, 30:] = Condition(0, named(11)).holds(token)[:, 30:]
    rule = fit_rule(token, fires, where, [0], VOCABULARY)
    assert rule.conditions[0].tokens.nonzero()[:, 0].tolist() == [3]


def test_a_feature_that_never_fires_has_no_rule() -> None:
    token = make_text()
    silent = torch.zeros_like(token, dtype=torch.bool)
    assert fit_rule(token, silent, ~silent, [0, -1], VOCABULARY).conditions == ()


def test_counts_of_documents_add_up_to_those_of_the_text() -> None:
    token = make_text()
    said, true = Condition(0, named(3, 4)).holds(token), Condition(0, named(4, 5)).holds(token)
    where = token != 1
    counts = agreement(said, true, where, torch.arange(40)[:, None].expand_as(token) // 2)
    assert counts.shape == (20, 3)
    assert counts.sum(0).tolist() == [(token == 4).sum(), said.sum(), true.sum()]


def test_a_rule_names_its_most_frequent_tokens() -> None:
    strings = [f" w{i}" for i in range(VOCABULARY)]
    counts = torch.arange(VOCABULARY)
    rule = Rule((Condition(-1, named(2, 9)), Condition(0, named(*range(5, 13)))))
    assert rule.words(strings, counts) == (
        "the token itself is one of `␣w12` `␣w11` `␣w10` `␣w9` `␣w8` `␣w7` and 2 more tokens, and "
        "the token before is one of `␣w9` `␣w2`"
    )


def test_tokens_that_differ_in_blanks_or_hold_quotes_are_told_apart() -> None:
    strings = [" he", "he", "\n", "`", "``a", "⟨E4⟩"]
    rule = Rule((Condition(0, torch.ones(6, dtype=torch.bool)),))
    assert rule.words(strings, torch.arange(6).flip(0)) == (
        "the token itself is one of `␣he` `he` `↵` `` ` `` ``` ``a ``` `⟨E4⟩`"
    )
