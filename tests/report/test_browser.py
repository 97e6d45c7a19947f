"""The report in a browser: mouse and keyboard control of its graph, window widths, print."""

import pytest
from tests.report.browser import open_report
from tests.report.test_graph import EDGES, NODES, TOKENS

from circuitloom.report.graph import LABELLED_WIDTH, LEFT_MARGIN, graph_markup, lay_out
from circuitloom.report.templates import read

NODE = "figure.graph .node"


@pytest.fixture(scope="module")
def shown(browser, written):
    with open_report(browser, written.file) as (page, log):
        yield page, log


@pytest.fixture
def page(shown):
    page, _ = shown
    page.reload()
    return page


def test_the_page_makes_no_requests_and_logs_nothing(shown, written) -> None:
    _, log = shown
    assert set(log.requests) == {written.file.as_uri()}
    assert log.messages == []


def test_hovering_over_a_node_highlights_its_edges_and_their_nodes(page) -> None:
    page.locator(f"{NODE}[data-n='1']").hover()
    edges = page.eval_on_selector_all(
        ".edges path.highlighted", "all => all.map(e => [e.dataset.s, e.dataset.t])"
    )
    assert sorted(edges) == [["1", "0"], ["2", "1"], ["3", "1"]]
    nodes = page.eval_on_selector_all(f"{NODE}.highlighted", "all => all.map(e => e.dataset.n)")
    assert sorted(nodes) == ["0", "1", "2", "3"]


def test_a_click_opens_the_panel_of_a_node(page) -> None:
    assert page.locator(".node-panel").is_hidden()
    page.locator(f"{NODE}[data-n='1']").click()
    panel = page.locator(".node-panel").inner_text()
    assert panel.startswith("1/5 'the'@2")
    assert "influence\n0.5" in panel
    # edges, the strongest first: predicted, frozen, free
    assert "logit 'the'@2\t2\t2\t1" in panel
    # a feature with a label
    assert panel.index("0/3 'the'@1 `the` after `a` (F1 0.75)\t1\t1\t0.5") < panel.index(
        "error 0 'the'@1\t0.25\t0.25\t0.125"
    )
    assert "raises the logits of\n\nthe" in panel
    assert page.locator(".examples .tokens").inner_text().strip() == "2the b the"
    assert page.locator(".examples b").evaluate("e => e.style.backgroundColor") == "rgba(230, 159, 0, 0.75)"
    page.locator(".node-panel .close").click()
    assert page.locator(".node-panel").is_hidden()


def test_a_feature_shows_its_label_and_its_score_on_hover(page) -> None:
    node = page.locator(f"{NODE}[data-n='2']")
    assert node.locator("text").all_text_contents() == ["`the` after", "`a`"]
    assert node.locator("title").text_content() == "0/3 'the'@1 `the` after `a` (F1 0.75)"
    assert node.get_attribute("aria-label").startswith("feature 0/3, `the` after `a` (F1 0.75), at the")
    node.click()
    assert page.locator(".node-panel h5").inner_text() == "0/3 'the'@1 `the` after `a` (F1 0.75)"
    assert page.locator(f"{NODE}[data-n='1'] title").count() == 0


def test_the_slider_keeps_nodes_up_to_the_share_and_all_targets_and_embeddings(page) -> None:
    total = 1 + 0.5 + 0.25 + 0.125 + 0.0625 + 0.03125
    share = int(100 * (1.75 / total)) + 1
    page.locator("input[type=range]").fill(str(share))
    kept = page.eval_on_selector_all(f"{NODE}:not(.pruned)", "all => all.map(e => e.dataset.n)")
    assert sorted(kept) == ["0", "1", "2", "4", "5"]
    edges = page.eval_on_selector_all(
        ".edges path:not(.pruned)", "all => all.map(e => [e.dataset.s, e.dataset.t])"
    )
    assert sorted(edges) == [["1", "0"], ["2", "0"], ["2", "1"], ["4", "2"], ["5", "0"]]
    assert page.locator(".count").inner_text() == "5 of 6 nodes, 5 of 6 edges"
    page.locator("input[type=range]").fill("10")
    kept = page.eval_on_selector_all(f"{NODE}:not(.pruned)", "all => all.map(e => e.dataset.n)")
    assert sorted(kept) == ["0", "4", "5"]


def test_arrow_keys_move_between_nodes_and_enter_opens_a_panel(page) -> None:
    def focused() -> str:
        return page.evaluate("document.activeElement.dataset.n")

    page.locator("input[type=range]").focus()
    page.keyboard.press("Tab")
    assert focused() == "0"
    # a focus ring is drawn
    assert (
        page.locator(f"{NODE}[data-n='0'] .ring").evaluate("e => getComputedStyle(e).strokeWidth") == "2.5px"
    )
    page.keyboard.press("ArrowDown")
    assert focused() == "1"
    page.keyboard.press("Enter")
    assert page.locator(".node-panel h5").inner_text() == "1/5 'the'@2"
    page.keyboard.press("Escape")
    assert page.locator(".node-panel").is_hidden()
    page.keyboard.press("ArrowUp")
    assert focused() == "0"
    # the Tab key stops at one node of the graph
    assert page.locator(f"{NODE}[tabindex='0']").count() == 1


def test_nodes_have_a_description_for_screen_readers(page) -> None:
    label = page.locator(f"{NODE}[data-n='1']").get_attribute("aria-label")
    assert label == "feature 1/5 at the, position 2; influence 0.5"


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_window_width_needs_horizontal_scrolling(browser, written, width: int) -> None:
    with open_report(browser, written.file, width) as (page, _):
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_hides_interactive_elements(page) -> None:
    page.emulate_media(media="print")
    for selector in (".pruning", "nav", "details.sql", ".node-panel"):
        assert page.locator(selector).first.is_hidden(), selector
    assert page.locator("figure.graph svg").is_visible()
    page.emulate_media(media="screen")


def test_graphs_are_drawn_without_scripts(browser, written) -> None:
    with open_report(browser, written.file, java_script_enabled=False) as (page, log):
        assert page.locator(NODE).count() == 6
        assert page.locator(".pruning").is_hidden()
        assert log.messages == []


def test_a_labelled_graph_is_drawn_as_laid_out_and_pruned_nodes_leave_no_gaps(browser) -> None:
    """Six labelled features of one token and layer, of which the first and the last stay after pruning."""
    feature = NODES[1] | {"feature_label": "`by` after `was`", "label_f1": 0.5}
    features = [feature | {"node": 10 + i, "cumulative": 0.1 if i in (0, 5) else 0.9} for i in range(6)]
    graph = lay_out(
        [*NODES[:1], *features, *NODES[2:]],
        [*EDGES, {"source_node": 15, "target_node": 7, "effect": 1.0}],
        TOKENS,
    )
    page = browser.new_page()
    page.set_content(f"{graph_markup(graph, 'war')}<script>{read('graph.js')}</script>")

    def placed() -> dict[int, float]:
        pairs = page.eval_on_selector_all(".node", "all => all.map(e => [e.dataset.n, e.getCTM().e])")
        return {int(number): x for number, x in pairs}

    def curves() -> list[str]:
        return page.eval_on_selector_all(".edges path", "all => all.map(e => e.getAttribute('d'))")

    def numbers(curve: str) -> list[float]:
        return [float(part) for part in curve.replace("M", "").replace("C", " ").split()]

    scale = page.evaluate("() => document.querySelector('svg').getCTM().a")
    assert {n: x / scale for n, x in placed().items()} == pytest.approx(
        {node.number: node.x for node in graph.nodes}, abs=0.2
    )
    for found, expected in zip(curves(), [edge.curve for edge in graph.edges], strict=True):
        assert numbers(found) == pytest.approx(numbers(expected), abs=0.2)
    page.locator("input[type=range]").fill("50")
    scale = page.evaluate("() => document.querySelector('svg').getCTM().a")
    # the token before is one unit wide, and two features are, too
    middle = LEFT_MARGIN + LABELLED_WIDTH * 1.5
    found = {n: x / scale for n, x in placed().items()}
    assert found[10] == pytest.approx(middle - LABELLED_WIDTH / 4, abs=0.2)
    assert found[15] == pytest.approx(middle + LABELLED_WIDTH / 4, abs=0.2)
    assert found[7] == pytest.approx(middle, abs=0.2)
    moved = numbers(curves()[[(edge.source, edge.target) for edge in graph.edges].index((15, 7))])
    assert (moved[0], moved[6]) == pytest.approx((found[15], found[7]), abs=0.2)
    page.close()
