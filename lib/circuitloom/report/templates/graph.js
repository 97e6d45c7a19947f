// Attribution graphs of the report and the explorer: highlighting, pruning, selection, and the report's panel about the
// selected node. Strings from the data are only ever set as text.
"use strict";
(() => {
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  /**
   * Behaviour of one figure written by graph.html. The figure fires three events, each with a `detail`:
   * graph-select {node}, the number of the selected node or null; graph-mark {nodes}, the numbers of all nodes marked
   * by Shift+click or Shift+Enter, only with `marking`; graph-prune {share}, when the slider moves.
   */
  class AttributionGraph {
    constructor(figure, { marking = false } = {}) {
      this.figure = figure;
      this.marking = marking;
      this.selected = null;
      this.nodes = [...figure.querySelectorAll(".node")];
      this.byNumber = new Map(this.nodes.map((node) => [node.dataset.n, node]));
      this.edges = [...figure.querySelectorAll(".edges path")];
      this.edgesOf = new Map(this.nodes.map((node) => [node.dataset.n, []]));
      for (const edge of this.edges) {
        this.edgesOf.get(edge.dataset.s).push(edge);
        this.edgesOf.get(edge.dataset.t).push(edge);
      }
      for (const node of this.nodes) {
        node.addEventListener("pointerenter", () => this.highlight(node));
        node.addEventListener("pointerleave", () => this.highlight(this.selected));
        node.addEventListener("focus", () => this.highlight(node));
        node.addEventListener("blur", () => this.highlight(this.selected));
        node.addEventListener("click", (event) => this.activate(node, event));
        node.addEventListener("keydown", (event) => this.press(node, event));
      }
      const pruning = figure.querySelector(".pruning");
      pruning.hidden = false;
      this.slider = pruning.querySelector("input");
      this.slider.addEventListener("input", () => {
        this.prune();
        this.fire("graph-prune", { share: this.slider.value / 100 });
      });
      this.prune();
      // the target is at the right end of most graphs
      const canvas = figure.querySelector(".canvas");
      const root = figure.querySelector(".root");
      // a root in view needs no scrolling, which would hide the names of the layers
      const x = root ? Number(root.dataset.x) : 0;
      if (x > canvas.clientWidth * 0.9) canvas.scrollLeft = x - canvas.clientWidth * 0.7;
    }

    fire(name, detail) {
      this.figure.dispatchEvent(new CustomEvent(name, { detail, bubbles: true }));
    }

    /** Dim everything except the edges of `node` and the nodes at their ends; dim nothing if `node` is null. */
    highlight(node) {
      this.figure.classList.toggle("highlighting", Boolean(node));
      for (const old of this.figure.querySelectorAll(".highlighted")) old.classList.remove("highlighted");
      if (!node) return;
      node.classList.add("highlighted");
      for (const edge of this.edgesOf.get(node.dataset.n)) {
        edge.classList.add("highlighted");
        this.byNumber.get(edge.dataset.s).classList.add("highlighted");
        this.byNumber.get(edge.dataset.t).classList.add("highlighted");
      }
    }

    /** Hide the nodes beyond the slider's share of the cumulative influence, and their edges. */
    prune() {
      const share = this.slider.value / 100;
      this.figure.querySelector("output").value = this.slider.value;
      let nodes = 0;
      let edges = 0;
      for (const node of this.nodes) {
        // rounding leaves the cumulative influence of the last node slightly above 1
        const kept = share >= 1 || node.dataset.always || Number(node.dataset.c) <= share + 1e-9;
        node.classList.toggle("pruned", !kept);
        nodes += kept ? 1 : 0;
      }
      for (const edge of this.edges) {
        const ends = [edge.dataset.s, edge.dataset.t].map((end) => this.byNumber.get(end));
        const kept = ends.every((end) => !end.classList.contains("pruned"));
        edge.classList.toggle("pruned", !kept);
        edges += kept ? 1 : 0;
      }
      if (this.figure.dataset.unit) this.arrange(Number(this.figure.dataset.unit));
      this.figure.querySelector(".count").textContent =
        `${nodes} of ${this.nodes.length} nodes, ${edges} of ${this.edges.length} edges`;
      if (this.selected && this.selected.classList.contains("pruned")) this.select(null);
    }

    /** Move the visible nodes of each column together: labels need more space than a pruned graph can leave empty. */
    arrange(unit) {
      const left = 84; // LEFT_MARGIN of report/graph.py
      const columns = new Map();
      for (const node of this.nodes) {
        if (node.classList.contains("pruned")) continue;
        const rows = columns.get(Number(node.dataset.p)) || new Map();
        rows.set(node.dataset.row, [...(rows.get(node.dataset.row) || []), node]);
        columns.set(Number(node.dataset.p), rows);
      }
      const svg = this.figure.querySelector("svg");
      const center = new Map();
      let end = 0;
      for (const [column, rows] of [...columns].sort(([a], [b]) => a - b)) {
        const width = Math.max(1, ...[...rows.values()].map((row) => row.length / 2));
        const middle = end + width / 2;
        end += width;
        center.set(String(column), left + unit * middle);
        for (const row of rows.values()) {
          row.forEach((node, i) => {
            node.dataset.x = (left + unit * (middle + (i + 0.5 - row.length / 2) / 2)).toFixed(1);
            node.setAttribute("transform", `translate(${node.dataset.x} ${node.dataset.y})`);
          });
        }
      }
      for (const token of svg.querySelectorAll("text.token")) {
        token.classList.toggle("pruned", !center.has(token.dataset.p));
        if (center.has(token.dataset.p)) token.setAttribute("x", center.get(token.dataset.p).toFixed(1));
      }
      for (const edge of this.edges) {
        const [[x0, y0], [x1, y1]] = [edge.dataset.s, edge.dataset.t].map((name) => {
          const { x, y } = this.byNumber.get(name).dataset;
          return [Number(x), Number(y)];
        });
        const bend = (y0 - y1) * 0.45;
        edge.setAttribute("d", `M${x0} ${y0}C${x0} ${y0 - bend} ${x1} ${y1 + bend} ${x1} ${y1}`);
      }
      const [, , , height] = svg.getAttribute("viewBox").split(" ");
      const width = left + unit * (end + 0.2);
      svg.setAttribute("width", width);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    }

    activate(node, event) {
      if (this.marking && event.shiftKey) this.mark(node);
      else this.select(node);
    }

    press(node, event) {
      if (event.key === "Enter" || event.key === " ") this.activate(node, event);
      else if (event.key === "Escape") this.select(null);
      else if (ARROWS[event.key]) this.focus(this.next(node, ...ARROWS[event.key]));
      else return;
      event.preventDefault();
    }

    /** Select a node and fire graph-select; null clears the selection. */
    select(node) {
      this.show(node);
      this.fire("graph-select", { node: node ? Number(node.dataset.n) : null });
    }

    /** Display a node as the selected one. */
    show(node) {
      if (this.selected) this.selected.classList.remove("selected");
      this.selected = node;
      if (node) {
        node.classList.add("selected");
        this.makeTabStop(node);
      }
      this.highlight(node);
    }

    mark(node) {
      node.setAttribute("aria-pressed", String(node.classList.toggle("marked")));
      const marked = this.nodes.filter((each) => each.classList.contains("marked"));
      this.fire("graph-mark", { nodes: marked.map((each) => Number(each.dataset.n)) });
    }

    /** The nearest visible node in a direction; a distance across that direction counts three times. */
    next(node, right, down) {
      const pixels = (one) => [Number(one.dataset.x), Number(one.dataset.y)];
      const [x, y] = pixels(node);
      let best = null;
      let least = Infinity;
      for (const other of this.nodes) {
        if (other === node || other.classList.contains("pruned")) continue;
        const [dx, dy] = [pixels(other)[0] - x, pixels(other)[1] - y];
        const along = right * dx + down * dy;
        const across = Math.abs(right * dy + down * dx);
        if (along > 0 && along + 3 * across < least) [best, least] = [other, along + 3 * across];
      }
      return best;
    }

    focus(node) {
      if (!node) return;
      this.makeTabStop(node);
      node.focus();
    }

    /** The Tab key stops at one node of the graph; arrow keys move between nodes. */
    makeTabStop(node) {
      for (const other of this.nodes) other.setAttribute("tabindex", other === node ? "0" : "-1");
    }
  }

  const element = (kind, text, className) => {
    const made = document.createElement(kind);
    if (text !== undefined && text !== null) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  // like whole_text and whole_tokens of core/token_text.py
  const NEXT = "⟨[89AB][0-9A-F]⟩";
  const CHARACTER = new RegExp([
    "⟨[0-7][0-9A-F]⟩", `⟨(?:C[2-9A-F]|D[0-9A-F])⟩${NEXT}`,
    `(?:⟨E0⟩⟨[AB][0-9A-F]⟩|⟨ED⟩⟨[89][0-9A-F]⟩|⟨E[1-9A-CEF]⟩${NEXT})${NEXT}`,
    `(?:⟨F0⟩⟨[9AB][0-9A-F]⟩|⟨F4⟩⟨8[0-9A-F]⟩|⟨F[1-3]⟩${NEXT})${NEXT}${NEXT}`,
  ].join("|"), "g");
  const wholeText = (text) => text.replace(CHARACTER, (bytes) =>
    new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes.match(/[0-9A-F]{2}/g), (byte) => parseInt(byte, 16))));

  /** Groups of tokens that split no character: the first index, the index after the last, and the text. */
  function wholeTokens(tokens) {
    const joined = tokens.join("");
    const inside = new Set();
    for (const match of joined.matchAll(CHARACTER)) {
      for (let place = 1; place < match[0].length; place++) inside.add(match.index + place);
    }
    const groups = [];
    let begin = 0;
    let first = 0;
    let stop = 0;
    tokens.forEach((token, i) => {
      stop += token.length;
      if (i + 1 < tokens.length && inside.has(stop)) return;
      groups.push({ first, after: i + 1, text: wholeText(joined.slice(begin, stop)) });
      [first, begin] = [i + 1, stop];
    });
    return groups;
  }

  // like escape_invisible, format_token and format_number of core/formatting.py
  const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "␍" };
  const escapeInvisible = (text) => Array.from(text, (c) =>
    SIGNS[c] || (/[\p{C}\u2028\u2029]/u.test(c) ? "\\u" + c.codePointAt(0).toString(16).padStart(4, "0") : c)).join("");
  const formatToken = (token) => token === "" ? "∅"
    : escapeInvisible(wholeText(token).replace(/^( *)(?=\p{M})/u, "$1◌")).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  const formatNumber = (value) => value === null || value === undefined ? "–"
    : Number(Number(value).toPrecision(4)).toString();

  // like node_text of report/graph.py
  const nodeText = (row) => escapeInvisible(row.label) + (row.feature_label === null ? ""
    : ` ${escapeInvisible(row.feature_label)}` + (row.label_f1 === null ? "" : ` (F1 ${Number(row.label_f1).toPrecision(2)})`));

  const answers = new Map();
  for (const script of document.querySelectorAll("script.rows")) answers.set(script.dataset.answer, script);

  /** Rows of an answer in the page as objects, parsed at first use. */
  const rowsOf = (name) => {
    const answer = answers.get(name);
    if (!answer) return [];
    if (Array.isArray(answer)) return answer;
    const { columns, rows } = JSON.parse(answer.textContent);
    const parsed = rows.map((row) => Object.fromEntries(columns.map((column, i) => [column, row[i]])));
    answers.set(name, parsed);
    return parsed;
  };

  /** The panel about the selected node, from the answers that the report contains as JSON. */
  class NodePanel {
    constructor(graph) {
      this.graph = graph;
      this.panel = graph.figure.querySelector(".node-panel");
      const { graph: name, nodes, edges } = graph.figure.dataset;
      Object.assign(this, { name, nodes, edges });
      graph.figure.addEventListener("graph-select", (event) => this.show(event.detail.node));
    }

    show(number) {
      this.panel.hidden = number === null;
      if (number === null) return;
      const row = rowsOf(this.nodes).find((each) => each.node === number);
      const close = element("button", "close", "close");
      close.addEventListener("click", () => {
        this.graph.select(null);
        this.graph.byNumber.get(String(number)).focus();
      });
      this.panel.replaceChildren(element("h5", nodeText(row)), this.facts(row), close,
        this.strongestEdges(row, "source_node", "target_node", "strongest outgoing edges"),
        this.strongestEdges(row, "target_node", "source_node", "strongest incoming edges"));
      if (row.kind === "feature") this.panel.append(this.logitEffects(row), this.examples(row));
    }

    facts(row) {
      const list = element("dl");
      for (const name of ["activation", "value", "influence", "cumulative", "probability", "remainder"]) {
        if (row[name] !== null) list.append(element("dt", name), element("dd", formatNumber(row[name])));
      }
      return list;
    }

    strongestEdges(row, end, other, heading) {
      const own = rowsOf(this.edges).filter((edge) => edge[end] === row.node)
        .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, 8);
      const part = element("div");
      part.append(element("h6", heading));
      if (!own.length) {
        part.append(element("p", "none drawn"));
        return part;
      }
      const texts = new Map(rowsOf(this.nodes).map((each) => [each.node, nodeText(each)]));
      const table = element("table");
      const head = table.createTHead().insertRow();
      for (const name of ["node", "predicted", "frozen", "free"]) head.append(element("th", name));
      const body = table.createTBody();
      for (const edge of own) {
        const line = body.insertRow();
        line.append(element("td", texts.get(edge[other])));
        for (const value of [edge.effect, edge.effect_frozen, edge.effect_free]) {
          line.append(element("td", formatNumber(value), "number"));
        }
      }
      part.append(table);
      return part;
    }

    /** Rows of the feature `row` in an answer of this trace. */
    ofFeature(query, row) {
      return rowsOf(`${query}:${this.name}`)
        .filter((each) => each.layer === row.layer && each.feature === row.feature);
    }

    logitEffects(row) {
      const part = element("div");
      for (const [sign, heading] of [[1, "raises the logits of"], [-1, "lowers the logits of"]]) {
        part.append(element("h6", heading));
        const line = element("p", undefined, "tokens");
        for (const each of this.ofFeature("graph_tokens", row).filter((one) => one.sign === sign)) {
          line.append(element("span", formatToken(each.token), "chip"), " ");
        }
        part.append(line);
      }
      return part;
    }

    examples(row) {
      const part = element("div", undefined, "examples");
      part.append(element("h6", "largest activations"));
      const found = this.ofFeature("graph_examples", row);
      if (!found.length) part.append(element("p", "no examples are tabulated"));
      for (const example of found) {
        const line = element("p", undefined, "tokens");
        line.append(element("span", formatNumber(example.activation), "value"));
        for (const { first, after, text } of wholeTokens(example.tokens)) {
          const activations = example.activations.slice(first, after);
          const made = element(first < example.here && example.here <= after ? "b" : "span", formatToken(text));
          const share = Math.max(0, ...activations) / example.activation;
          made.style.backgroundColor = `rgba(230, 159, 0, ${(0.75 * Math.min(1, share)).toFixed(2)})`;
          made.title = activations.map(formatNumber).join(", ");
          line.append(made, " ");
        }
        part.append(line);
      }
      return part;
    }
  }

  for (const figure of document.querySelectorAll("figure.graph")) new NodePanel(new AttributionGraph(figure));
  window.AttributionGraph = AttributionGraph;
})();
