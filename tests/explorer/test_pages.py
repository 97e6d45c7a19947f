"""Every page in a browser, over tables with hostile strings."""

import json
import re
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from tests.explorer.made_up import HOSTILE, PLAIN_TRACE, RUN, TRACE

from circuitloom.catalog.output import printable
from circuitloom.core.formatting import escape_invisible
from circuitloom.explorer.urls import feature_link, link

PAGES = {
    "overview": "/",
    "dictionaries": f"/dictionaries?layer=0&run={RUN}",
    "features": f"/features?run={RUN}&layer=1",
    "feature": feature_link(RUN, 1, 7),
    "circuits": link("circuits", trace=TRACE, node="0"),
    "try": "/try",
    "sql": link("sql", query="SELECT token FROM token"),
}
SEEN = {
    "overview": HOSTILE[:2],
    "features": (),
    "feature": HOSTILE[:6],
    "circuits": HOSTILE,
    "sql": HOSTILE[:8],
}
"""Strings that each page shows without scrolling."""


SLIDER, COUNT, NODE = "#circuit-graph input[type=range]", "#circuit-graph .count", "#circuit-graph .node"


def parameters(visit) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(visit.page.url).query).items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_hostile_strings_as_text_and_runs_no_script(visit, name) -> None:
    visit.open(PAGES[name])
    visit.settle()
    visit.screenshot(f"made-up-{name}")
    text = visit.text()
    for token in SEEN.get(name, ()):
        if token.strip() and token != "&lt;":
            # results of SQL are shown as on the command line
            assert escape_invisible(token) in text or printable(token) in text, token
    assert visit.page.evaluate("window.hacked") is None
    assert (
        visit.page.evaluate("document.querySelectorAll('#page img, #page script, #page b, #page i').length")
        == 0
    )


@pytest.mark.parametrize("name", [name for name in PAGES if name != "feature"])
def test_the_navigation_bar_opens_each_page(visit, name) -> None:
    visit.open("/sql" if name != "sql" else "/")
    visit.page.click(f"#to-{name}")
    visit.page.wait_for_selector(f"#to-{name}.current")
    assert name.lower() in visit.page.title().lower()


def test_the_address_restores_the_pruned_circuit(visit) -> None:
    visit.open(link("circuits", trace=TRACE), "#circuit-graph svg")
    visit.settle()
    before = visit.text(COUNT)
    visit.page.focus(SLIDER)
    for _ in range(30):
        visit.page.keyboard.press("ArrowRight")
    after = visit.text(COUNT)
    assert int(after.split()[0]) > int(before.split()[0])
    visit.page.wait_for_function("() => location.search.includes('share=0.9')")
    visit.open(visit.page.url.removeprefix(visit.address), "#circuit-graph svg")
    assert visit.text(COUNT) == after


def test_pruning_hides_features_beyond_the_share_but_no_supernode_target_or_embedding(visit) -> None:
    visit.open(link("circuits", trace=TRACE, share="0", groups="years:8,9"), "#circuit-graph svg")
    shown = visit.page.eval_on_selector_all(f"{NODE}:not(.pruned)", "all => all.map(e => e.classList[1])")
    assert sorted(set(shown)) == ["embedding", "logit", "supernode"]
    assert len(shown) == 2 + len(HOSTILE) + 1


def test_a_node_chosen_by_keyboard_is_described_and_links_to_its_feature(visit) -> None:
    visit.open(link("circuits", trace=TRACE), "#circuit-graph svg")
    visit.settle()
    visit.page.focus("#circuit-node")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("input.dash-dropdown-search:focus")
    visit.page.keyboard.insert_text("0/7")
    visit.settle()
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#circuit-about h3")
    assert "0/7" in visit.text("#circuit-about h3")
    assert parameters(visit)["node"] == "0"
    visit.page.click("#circuit-about a")
    visit.page.wait_for_selector("h1")
    assert visit.text("h1") == "Feature 0/7"


def test_a_click_on_a_node_shows_its_panel_and_escape_closes_it(visit) -> None:
    visit.open(link("circuits", trace=TRACE, share="1"), "#circuit-graph svg")
    visit.settle()
    visit.page.locator(f"{NODE}[data-n='3']").click()
    visit.page.wait_for_selector("#circuit-about h3")
    assert visit.text("#circuit-about h3").startswith("1/10 ")
    visit.page.wait_for_function("() => location.search.includes('node=3')")
    # the address alone selects it again
    visit.open(visit.page.url.removeprefix(visit.address), "#circuit-about h3")
    visit.page.wait_for_selector(f"{NODE}.selected[data-n='3']")
    visit.page.focus(f"{NODE}[data-n='3']")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#circuit-about h3", state="detached")
    assert "node" not in parameters(visit)


def test_nodes_are_marked_by_mouse_and_keyboard_and_become_a_supernode(visit) -> None:
    visit.open(link("circuits", trace=TRACE, share="1", groups="years:0,1"), "#circuit-graph svg")
    visit.settle()
    visit.page.click("#circuit-group")
    visit.page.wait_for_selector("#callback-error .error")
    assert "mark at least two nodes" in visit.text("#callback-error")
    visit.page.locator(f"{NODE}[data-n='2']").click(modifiers=["Shift"])
    visit.page.focus(f"{NODE}[data-n='3']")
    visit.page.keyboard.press("Shift+Enter")
    assert visit.page.locator(f"{NODE}.marked[aria-pressed=true]").count() == 2
    assert visit.page.locator("#circuit-about h3").count() == 0
    visit.page.fill("#circuit-group-name", "rest")
    visit.page.click("#circuit-group")
    visit.page.wait_for_selector(f"{NODE}[data-n='-2']")
    assert visit.page.locator(f"{NODE}[data-n='2'], {NODE}[data-n='3']").count() == 0
    assert visit.page.text_content(f"{NODE}[data-n='-2'] text") == "rest (2)"
    visit.page.wait_for_function("() => location.search.includes('rest')")
    assert parameters(visit)["groups"] == "years:0,1;rest:2,3"
    visit.page.locator(f"{NODE}[data-n='-2']").click()
    visit.page.wait_for_selector("#circuit-about h3")
    assert visit.text("#circuit-about h3") == "rest"
    visit.page.click("#circuit-ungroup")
    visit.page.wait_for_selector(f"{NODE}[data-n='2']")
    assert visit.page.locator(f"{NODE}.supernode").count() == 0
    visit.page.wait_for_function("() => !location.search.includes('rest')")


def test_supernodes_of_a_trace_are_saved_shown_again_and_removed(visit, made_up) -> None:
    path, saved = link("circuits", trace=PLAIN_TRACE), made_up / "circuits" / PLAIN_TRACE / "supernodes.json"
    visit.open(f"{path}&share=1&groups=a%252Cb:0,1", "#circuit-graph svg")
    visit.settle()
    assert "Grouped: " in visit.text("#circuit-summary")
    visit.page.click("#circuit-save")
    visit.page.wait_for_function(
        "() => document.querySelector('#circuit-saved').innerText.startsWith('saved 1 ')"
    )
    assert list(json.loads(saved.read_text())) == ["a,b"]
    visit.page.wait_for_function("() => !location.search.includes('groups')")
    # without groups in the address, the saved ones are shown
    visit.open(path, f"{NODE}.supernode")
    visit.settle()
    assert "".join(visit.page.locator(f"{NODE}.supernode text").all_text_contents()) == "a,b (2)"
    visit.page.click("#circuit-ungroup")
    visit.page.wait_for_function("() => location.search.includes('groups=none')")
    visit.open(visit.page.url.removeprefix(visit.address), "#circuit-graph svg")
    visit.settle()
    assert visit.page.locator(f"{NODE}.supernode").count() == 0
    visit.page.click("#circuit-save")
    visit.page.wait_for_function(
        "() => document.querySelector('#circuit-saved').innerText.startsWith('no supernodes')"
    )
    assert not saved.exists()


def test_the_rule_says_when_no_two_features_agree(visit) -> None:
    visit.open(link("circuits", trace=TRACE), "#circuit-graph svg")
    visit.settle()
    visit.page.click("#circuit-rule")
    visit.page.wait_for_selector("#callback-error .error")
    assert "no two features of one position have equal labels" in visit.text("#callback-error")


def test_the_pages_of_features_and_circuits_show_labels_as_text(visit) -> None:
    visit.open(feature_link(RUN, 0, 7), "#page h2:text-is('Labels')")
    rows = visit.page.locator("section:has(h2:text-is('Labels')) tbody tr").all_inner_texts()
    assert [row.split("\t")[1:4] for row in rows] == [
        ["rule", "token", "0.9 (0.25 to 0.95)"], ["frequent", "token", "0.99 (0.25 to 0.95)"],
    ]  # fmt: skip
    assert HOSTILE[0] in rows[0]
    visit.open(link("circuits", trace=TRACE, share="1"), "#circuit-graph svg")
    title = visit.page.text_content(f"{NODE}[data-n='0'] title")
    assert title.startswith("0/7 ") and f"`{HOSTILE[0]}` after `b` (F1 0.9)" in title
    assert f"`{HOSTILE[0]}` after `b`" in visit.text(
        "section:has(h2:text-is('Features, the most influential first'))"
    )
    assert visit.page.evaluate("window.hacked") is None


def test_a_head_edge_opens_the_pairs_of_its_score(visit) -> None:
    visit.open(link("circuits", trace=TRACE))
    visit.settle()
    text = visit.text()
    # the edge that passes most to the root is open
    assert "Head 0.1 at" in text and "+1.25" in text and "Sources of the key alone" in text
    # the feature has its label in both tables, the embedding has none
    label = escape_invisible(f"`{HOSTILE[0]}` after `b` (F1 0.9)")
    section = "section:has(h2:text-is('Why heads read what they read'))"
    assert visit.page.locator(f"{section} td .label").all_inner_texts() == [label] * 2
    visit.page.get_by_role("link", name="1.1", exact=True).click()
    visit.page.locator("p", has_text="Head 1.1 at").wait_for()
    assert parameters(visit)["head"] == "1.1.11.3"
    assert "+2.25" in visit.text()
    visit.screenshot("made-up-head-edge")


def test_a_search_by_label_finds_features_of_other_layers_too(visit) -> None:
    visit.open(link("features", run=RUN, layer=1, by="label", search="after"), "#features-count")
    visit.settle()
    assert visit.text("#features-count") == "0 features"
    visit.page.click("section:has(h2:text-matches('other layers and runs')) td a")
    visit.page.wait_for_selector("h1")
    assert visit.text("h1") == "Feature 0/7"


def test_the_address_restores_filters_and_sort_order_of_features(visit) -> None:
    visit.open(f"/features?run={RUN}&layer=1", ".ag-cell a")
    assert visit.text("#features-count") == "300 features"
    visit.page.fill("input[aria-label='tokens Filter Input']", "37")
    visit.page.wait_for_function("() => document.querySelector('#features-count').innerText.startsWith('2 ')")
    visit.settle()
    assert "n_tokens" in parameters(visit)["filter"]
    visit.page.click(".ag-header-cell[col-id=feature] .ag-header-cell-label")
    visit.page.click(".ag-header-cell[col-id=feature] .ag-header-cell-label")
    visit.page.wait_for_function("() => location.search.includes('desc')")
    visit.settle()
    assert visit.text(".ag-row[row-index='0'] .ag-cell[col-id=feature]") == "201"
    again = visit.page.url.removeprefix(visit.address)
    visit.open(again, ".ag-cell a")
    visit.settle()
    assert visit.text("#features-count") == "2 features"
    assert visit.text(".ag-row[row-index='0'] .ag-cell[col-id=feature]") == "201"


def test_a_search_finds_features_that_fire_on_a_text_and_shows_its_sql(visit) -> None:
    visit.open(f"/features?run={RUN}&layer=1", ".ag-cell a")
    visit.settle()
    visit.page.keyboard.press("/")
    visit.page.wait_for_selector("input[type=search]:focus")
    # as one insertion: a slow page may move the cursor between keystrokes
    visit.page.keyboard.insert_text("bold</b>")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("() => location.search.includes('search=bold%3C')")
    visit.page.wait_for_selector(".ag-header-cell[col-id=match]")
    visit.settle()
    assert 0 < int(visit.text("#features-count").split()[0]) < 300
    visit.page.click("#features-sql summary")
    assert "features_on('bold</b>')" in visit.text("#features-sql pre")
    visit.page.click("#features-sql a")
    visit.page.wait_for_selector("#sql-result .ag-cell")
    assert "rows in" in visit.text("#sql-result")


def test_a_click_opens_a_feature_and_keys_step_to_its_neighbours(visit) -> None:
    visit.open(f"/features?run={RUN}&layer=1", ".ag-cell a")
    visit.page.click(".ag-row[row-index='3'] a")
    visit.page.wait_for_selector("h1")
    assert visit.text("h1") == "Feature 1/3"
    visit.settle()
    visit.page.keyboard.press("j")
    visit.page.wait_for_function("() => document.querySelector('h1').innerText === 'Feature 1/4'")
    visit.page.keyboard.press("k")
    visit.page.wait_for_function("() => document.querySelector('h1').innerText === 'Feature 1/3'")
    visit.page.wait_for_selector("h2:has-text('Upstream features')")
    visit.page.click("#feature-alike")
    visit.page.wait_for_selector("#feature-alike-found table")


def test_a_point_of_the_pareto_plot_opens_the_features_of_its_run(visit) -> None:
    visit.open("/dictionaries?layer=1", "#pareto .points path")
    visit.settle()
    visit.page.locator("#pareto .points path").first.click(force=True)
    visit.page.wait_for_selector(".ag-cell a")
    assert parameters(visit)["layer"] == "1"


def test_keys_navigate_between_pages_and_are_listed(visit) -> None:
    visit.open("/")
    visit.settle()
    for key, name in (
        ("f", "features"),
        ("c", "circuits"),
        ("d", "dictionaries"),
        ("s", "sql"),
        ("o", "overview"),
    ):
        visit.page.keyboard.press("g")
        visit.page.keyboard.press(key)
        visit.page.wait_for_selector(f"#to-{name}.current")
    visit.page.keyboard.press("?")
    assert "previous feature" in visit.text("dialog")
    visit.page.keyboard.press("Escape")
    assert not visit.page.is_visible("dialog")
    visit.open("/")
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO 'written.csv'",
        "WITH x AS (COPY (SELECT 1) TO 'written.csv') SELECT 1",
        "SELECT * FROM read_text('/etc/passwd')",
        "FROM '/etc/passwd'",
        "ATTACH 'other.duckdb'",
        "SELECT 1; SELECT 2",
    ],
)
def test_the_sql_console_neither_writes_nor_reads_other_files(
    visit, made_up, tmp_path, monkeypatch, statement
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(made_up.rglob("*"))
    visit.open(link("sql", query=statement), "#sql-result .error")
    assert "root:" not in visit.text("#sql-result")
    assert sorted(made_up.rglob("*")) == files
    assert list(tmp_path.iterdir()) == []


def test_the_sql_console_runs_a_select_by_keyboard(visit) -> None:
    visit.open("/sql", "#sql-text")
    visit.page.fill("#sql-text", "SELECT 1 + 1 AS two, 'a' AS word, NULL AS nothing")
    visit.page.keyboard.press("Control+Enter")
    visit.page.wait_for_selector("#sql-result .ag-cell")
    assert visit.text("#sql-result .ag-row").split() == ["2", "a", "NULL"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/feature?run=none&layer=0&feature=1", "none has no feature 1 on layer 0"),
        ("/feature?run=none", "needs run, layer and feature"),
        ("/feature?run=none&layer=x&feature=1", "layer='x' in the address must be an integer"),
        ("/features?run=none", "none has no features here; choose from"),
        ("/circuits?trace=none", "this study has no circuit none; choose from"),
        (f"/circuits?trace={quote(TRACE)}&share=2", "share='2' in the address must be a number from 0 to 1"),
        (f"/circuits?trace={quote(TRACE)}&groups=a:b", "must have the form name:1,2"),
        (
            f"/circuits?trace={quote(TRACE)}&head=9.9.9.9",
            "has no head edge 9.9.9.9; choose from 0.1.11.3, 1.1.11.3",
        ),
        ("/dictionaries?measure=none", "measure='none' in the address must be one of ce"),
        ("/nowhere", "there is no page nowhere"),
    ],
)
def test_an_invalid_address_gives_a_one_line_error_with_a_remedy(visit, path, message) -> None:
    visit.open(path, "#page .error")
    assert message in re.sub(r"\s+", " ", visit.text("#page .error"))


@pytest.mark.slow
def test_a_narrow_window_needs_no_horizontal_scrolling(visit) -> None:
    size = visit.page.viewport_size
    visit.page.set_viewport_size({"width": 420, "height": 1000})
    for path in PAGES.values():
        visit.open(path)
        visit.settle()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 440, path
    visit.page.set_viewport_size(size)
