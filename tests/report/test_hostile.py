"""Tokens that are HTML, scripts, quotes and control characters are shown as text and never executed."""

import json

import pytest
from tests.report.browser import open_report
from tests.report.conftest import write

from circuitloom.core.formatting import escape_invisible, format_token
from circuitloom.report import sections
from circuitloom.report.templates import policy, script_json

TOKENS = {
    "a script": "<script>document.title='broken'</script>",
    "the end of a script": "</script><script>document.title='broken'</script>",
    "a comment in a script": "<!--<script>",
    "an image": "<img src=x onerror=\"document.title='broken'\">",
    "quotes": "\"' onload=\"document.title='broken'\" x='`${1}",
    "markdown": "![a](http://localhost:9/x.png) [b](javascript:document.title=1) <http://localhost:9/>",
    "controls": "a\n\r\t\x01\u2028\u2029\u202eb",
    "blanks": "  x ",
    "a template": "{{ 7 * 7 }}{% raw %}{0}$x$",
    "other letters": "日本 é 🜁",
    "parts of a character": "x⟨E4⟩⟨B8⟩",
    "bytes of a character": " ⟨E4⟩⟨B8⟩⟨AD⟩⟨41⟩",
    "a combining mark": " \u0301x",
    "right to left": " שלום 3",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report with a trace and a case study per token. Pictures, which take most of the time, are left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "inline_svg", lambda figure, name, label: "<svg></svg>")
        return write(tmp_path_factory.mktemp("hostile"), tokens=list(TOKENS.values()))


@pytest.fixture(scope="module")
def shown(browser, hostile):
    with open_report(browser, hostile.file) as (page, log):
        yield page, log


@pytest.mark.parametrize("place", range(len(TOKENS)), ids=list(TOKENS))
def test_a_hostile_token_is_shown_as_text(place: int, shown, hostile) -> None:
    page, _ = shown
    token, number = list(TOKENS.values())[place], place or ""
    graph = page.locator(f"figure.graph[data-graph='war{number}']")
    root = graph.locator(".node[data-n='0']")
    assert root.locator("text").evaluate("e => e.textContent") == format_token(token)
    trace = page.locator("article.trace", has=page.locator(f"[data-graph='war{number}']"))
    chip = trace.locator("> .tokens .chip").nth(1)
    # the position follows the token
    assert chip.evaluate("e => e.firstChild.textContent") == format_token(token)
    graph.locator(".node[data-n='1']").dispatch_event("click")
    assert escape_invisible(token) in graph.locator(".node-panel h5").evaluate("e => e.textContent")
    claims = page.locator(f"table[data-answer='claims_of_case:caught{number}'] td").first
    assert escape_invisible(f"share of {token}") in claims.evaluate("e => e.textContent")
    case = page.locator("article.case", has=page.locator(f"[data-answer='claims_of_case:caught{number}']"))
    assert case.locator(".result a, .result script").count() == 0
    assert case.locator("img").count() == 2
    stored = hostile.page.rows[f"graph_nodes:war{number}"][0]["token"]
    assert stored == token


def test_examples_show_the_characters_that_tokens_make_up(browser, tmp_path) -> None:
    with open_report(browser, write(tmp_path, tokens=["x⟨E4⟩⟨B8⟩"]).file) as (page, _):
        page.locator(".node[data-n='1']").first.dispatch_event("click")
        tokens = page.locator(".examples .tokens").first
        assert tokens.locator("span:not(.value), b").all_text_contents() == ["x中", "x⟨E4⟩⟨B8⟩"]
        assert tokens.locator("b").all_text_contents() == ["x⟨E4⟩⟨B8⟩"]


def test_hostile_tokens_have_no_effect(shown, hostile) -> None:
    page, log = shown
    for node in page.locator("figure.graph .node[data-n='1']").all():
        node.dispatch_event("click")
    assert page.title() == "circuitloom: made"
    assert page.locator(".node-panel .chip").first.evaluate("e => e.textContent") == next(
        iter(TOKENS.values())
    )
    assert page.locator("script").count() == 1 + len(hostile.page.rows)
    assert page.evaluate("document.querySelectorAll('[onerror], [onload]').length") == 0
    assert set(log.requests) == {hostile.file.as_uri()}
    assert log.messages == []


def test_json_in_a_script_cannot_end_the_script_and_keeps_its_value() -> None:
    value = {"a": [*TOKENS.values(), 0.5, None, float("nan")]}
    text = script_json(value)
    for broken in ("<", ">", "&", "\u2028", "\u2029"):
        assert broken not in text
    assert json.loads(text) == {"a": [*TOKENS.values(), 0.5, None, None]}


def test_the_policy_allows_only_the_pages_own_script(written) -> None:
    (script,) = written.page.scripts
    content = written.html.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert content.replace("&#39;", "'") == policy(script)
    assert "default-src 'none'" in policy(script)
    assert "http" not in policy(script)
    assert policy(script) != policy(script + " ")
