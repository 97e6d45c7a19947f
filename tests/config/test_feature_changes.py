"""Edits of features as text, as commands and the explorer take them."""

import pytest

from circuitloom.config.circuits import FeatureChange, RunChange, parse_change, parse_changes


@pytest.mark.parametrize(
    ("kind", "text", "run", "expected"),
    [
        ("set", "2/887=30", None, {"kind": "clamp", "features": ["2/887"], "strength": 30.0}),
        ("clamp", " 2/887@-1=-0.5 ", None, {"kind": "clamp", "features": ["2/887@-1"], "strength": -0.5}),
        ("ablate", "1/12, 1/13", None, {"kind": "ablate", "features": ["1/12", "1/13"]}),
        ("scale", "tc-topk16-1024:0/3=2e1", "tc-topk16-1024", {"kind": "scale", "features": ["0/3"], "strength": 20.0}),
        ("add", "a:b:1/7@4=5", "a:b", {"kind": "add", "features": ["1/7@4"], "strength": 5.0}),
        ("keep", "1/7", None, {"kind": "keep", "features": ["1/7"]}),
    ],
)  # fmt: skip
def test_an_edit_is_read(kind, text, run, expected) -> None:
    assert parse_change(kind, text) == RunChange(run, FeatureChange(**expected))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("set", "2/887", "write set LAYER/NUMBER=VALUE, such as set 2/887=30"),
        ("ablate", "2/887=30", "write ablate LAYER/NUMBER, such as ablate 2/887"),
        ("set", "887=30", "set '887=30' cannot be read"),
        ("set", "2/887=", "'' is no number"),
        ("set", "2/887=much", "'much' is no number"),
        ("add", "2/887=nan", "'nan' is no number"),
        ("set", "2/x=3", "cannot be read"),
        ("patch", "2/887", "'patch' is no edit; write set, ablate, scale, add or keep"),
    ],
)
def test_a_malformed_edit_is_refused_in_one_line(kind, text, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_change(kind, text)
    assert "\n" not in str(error.value)


def test_edits_are_separated_by_semicolons() -> None:
    expected = [parse_change("set", "2/887=30"), parse_change("ablate", "1/12,1/13")]
    assert parse_changes("set 2/887=30;  ablate 1/12,1/13 ; ") == expected
    for text, message in {" ; ": "no edit is named", "ablate": "ablate '' cannot be read"}.items():
        with pytest.raises(ValueError, match=message):
            parse_changes(text)
