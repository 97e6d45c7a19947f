"""Pictures of a circuit for a logit difference show what is defined."""

from circuitloom.cases.difference.figures import draw_components


def test_components_whose_worth_is_not_defined_are_left_out_of_the_picture():
    row = {"kind": "head", "layer": 0, "component": 1, "in_circuit": True}
    known = row | {"component": 2, "worth": 0.4, "worth_low": 0.3, "worth_high": 0.5}
    figure = draw_components([row | dict.fromkeys(("worth", "worth_low", "worth_high")), known])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.2"]
