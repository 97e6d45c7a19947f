"""`examples_html`."""

from circuitloom.features.examples import examples_html

ROW = {
    "activation": 4.0,
    "position": 7,
    "window_start": 5,
    "tokens": ["<b>&", "was", "caught"],
    "activations": [0.0, 1.0, 4.0],
}


def test_tokens_are_shaded_by_their_share_of_the_largest_activation() -> None:
    page = examples_html([ROW], 4.0, " ")
    assert page.count("background") == 2
    assert "0.65)" in page.split("was</span>")[1]
    assert "0.16)" in page.split("was</span>")[0]


def test_the_examples_own_token_is_underlined() -> None:
    assert "caught</span></u>" in examples_html([ROW], 4.0)
    assert examples_html([ROW], 4.0).count("<u>") == 1


def test_tokens_are_escaped() -> None:
    page = examples_html([ROW | {"tokens": ["<script>", "\n", '"&']}], 4.0, " ")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\\n" in page
    assert "&quot;&amp;" in page
