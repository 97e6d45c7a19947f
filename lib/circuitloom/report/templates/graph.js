// Attribution graphs of the report: highlighting, pruning, and what is known of a node. All text goes in as text.
"use strict";
(() => {
  const answers = new Map();
  for (const script of document.querySelectorAll("script.rows")) {
    answers.set(script.dataset.answer, script);
  }

  /** Rows of a query as objects, read when they are first asked for. */
  const rows = (name) => {
    const held = answers.get(name);
    if (!held) return [];
    if (Array.isArray(held)) return held;
    const { columns, rows: all } = JSON.parse(held.textContent);
    const read = all.map((row) => Object.fromEntries(columns.map((column, i) => [column, row[i]])));
    answers.set(name, read);
    return read;
  };

  const element = (kind, text, style) => {
    const made = document.createElement(kind);
    if (text !== undefined && text !== null) made.textContent = text;
    if (style) made.className = style;
    return made;
  };

  const signs = { "\n": "↵", "\t": "⇥", "\r": "␍" };
  const visible = (text) => Array.from(text, (c) =>
    signs[c] || (/[\p{C}\u2028\u2029]/u.test(c) ? "\\u" + c.codePointAt(0).toString(16).padStart(4, "0") : c)).join("");
  const token = (text) => text === "" ? "∅"
    : visible(text).replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
  const number = (value) => value === null || value === undefined ? "–"
    : Number(Number(value).toPrecision(4)).toString();

  class Graph {
    constructor(figure) {
      this.figure = figure;
      this.name = figure.dataset.graph;
      this.told = figure.querySelector(".told");
      this.nodes = [...figure.querySelectorAll(".node")];
      this.byNumber = new Map(this.nodes.map((node) => [node.dataset.n, node]));
      this.edges = [...figure.querySelectorAll(".edges path")];
      this.touching = new Map(this.nodes.map((node) => [node.dataset.n, []]));
      for (const edge of this.edges) {
        this.touching.get(edge.dataset.s).push(edge);
        this.touching.get(edge.dataset.t).push(edge);
      }
      for (const node of this.nodes) {
        node.addEventListener("pointerenter", () => this.light(node));
        node.addEventListener("pointerleave", () => this.light(this.chosen));
        node.addEventListener("focus", () => this.light(node));
        node.addEventListener("blur", () => this.light(this.chosen));
        node.addEventListener("click", () => this.tell(node));
        node.addEventListener("keydown", (event) => this.press(event, node));
      }
      const controls = figure.querySelector(".controls");
      controls.hidden = false;
      this.slider = controls.querySelector("input");
      this.slider.addEventListener("input", () => this.prune());
      // what is explained stands at the right end of most graphs
      const canvas = figure.querySelector(".canvas");
      const root = figure.querySelector(".root");
      if (root) canvas.scrollLeft = Number(root.dataset.x) - canvas.clientWidth * 0.7;
      this.prune();
    }

    /** Show a node's edges, and what they join, before all others; everything alike without one. */
    light(node) {
      this.figure.classList.toggle("lit", Boolean(node));
      for (const lit of this.figure.querySelectorAll(".on")) lit.classList.remove("on");
      if (!node) return;
      node.classList.add("on");
      for (const edge of this.touching.get(node.dataset.n)) {
        edge.classList.add("on");
        this.byNumber.get(edge.dataset.s).classList.add("on");
        this.byNumber.get(edge.dataset.t).classList.add("on");
      }
    }

    /** Leave out nodes beyond the share of influence that is asked for, and the edges of those. */
    prune() {
      const share = this.slider.value / 100;
      this.figure.querySelector("output").value = this.slider.value;
      let nodes = 0;
      let edges = 0;
      for (const node of this.nodes) {
        // what is held up to a node, itself included, is 1 at the end but for rounding
        const kept = share >= 1 || node.dataset.stays || Number(node.dataset.c) <= share + 1e-9;
        node.classList.toggle("gone", !kept);
        nodes += kept ? 1 : 0;
      }
      for (const edge of this.edges) {
        const ends = [edge.dataset.s, edge.dataset.t].map((end) => this.byNumber.get(end));
        const kept = ends.every((end) => !end.classList.contains("gone"));
        edge.classList.toggle("gone", !kept);
        edges += kept ? 1 : 0;
      }
      this.figure.querySelector(".count").textContent =
        `${nodes} of ${this.nodes.length} nodes, ${edges} of ${this.edges.length} edges`;
      if (this.chosen && this.chosen.classList.contains("gone")) this.close();
    }

    press(event, node) {
      const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key === "Enter" || event.key === " ") this.tell(node);
      else if (event.key === "Escape") this.close();
      else if (ways[event.key]) this.go(this.next(node, ...ways[event.key]));
      else return;
      event.preventDefault();
    }

    /** The nearest node that is shown, in a direction; what lies off it counts threefold. */
    next(node, right, down) {
      const place = (one) => [Number(one.dataset.x), Number(one.dataset.y)];
      const [x, y] = place(node);
      let best = null;
      let least = Infinity;
      for (const other of this.nodes) {
        if (other === node || other.classList.contains("gone")) continue;
        const [dx, dy] = [place(other)[0] - x, place(other)[1] - y];
        const along = right * dx + down * dy;
        const off = Math.abs(right * dy + down * dx);
        if (along > 0 && along + 3 * off < least) [best, least] = [other, along + 3 * off];
      }
      return best;
    }

    /** Move the focus; one node of the graph is a stop of the Tab key. */
    go(node) {
      if (!node) return;
      for (const other of this.nodes) other.setAttribute("tabindex", "-1");
      node.setAttribute("tabindex", "0");
      node.focus();
    }

    close() {
      this.chosen = null;
      this.told.hidden = true;
      this.light(null);
    }

    tell(node) {
      this.chosen = node;
      const row = rows(this.figure.dataset.nodes).find((each) => String(each.node) === node.dataset.n);
      this.told.replaceChildren(element("h5", visible(row.label)), this.facts(row));
      const close = element("button", "close", "close");
      close.addEventListener("click", () => { this.close(); node.focus(); });
      this.told.append(close, this.list(row, "source_node", "target_node", "acts on"),
        this.list(row, "target_node", "source_node", "is acted on by"));
      if (row.kind === "feature") this.told.append(this.tokens(row), this.examples(row));
      this.told.hidden = false;
      for (const other of this.nodes) other.setAttribute("tabindex", other === node ? "0" : "-1");
      this.light(node);
    }

    facts(row) {
      const shown = ["activation", "value", "influence", "cumulative", "probability", "remainder"];
      const list = element("dl");
      for (const name of shown.filter((each) => row[each] !== null)) {
        list.append(element("dt", name), element("dd", number(row[name])));
      }
      return list;
    }

    /** The strongest edges at one end of a node. */
    list(row, end, other, heading) {
      const own = rows(this.figure.dataset.edges).filter((edge) => edge[end] === row.node)
        .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, 8);
      const part = element("div");
      part.append(element("h6", heading));
      if (!own.length) return part.append(element("p", "nothing that is drawn")), part;
      const labels = new Map(rows(this.figure.dataset.nodes).map((each) => [each.node, each.label]));
      const table = element("table");
      const head = table.createTHead().insertRow();
      for (const name of ["node", "predicted", "frozen", "free"]) head.append(element("th", name));
      const body = table.createTBody();
      for (const edge of own) {
        const line = body.insertRow();
        line.append(element("td", visible(labels.get(edge[other]))));
        for (const value of [edge.effect, edge.effect_frozen, edge.effect_free]) {
          line.append(element("td", number(value), "number"));
        }
      }
      part.append(table);
      return part;
    }

    of(query, row) {
      return rows(`${query}:${this.name}`)
        .filter((each) => each.layer === row.layer && each.feature === row.feature);
    }

    tokens(row) {
      const part = element("div");
      for (const [sign, name] of [[1, "raises the logits of"], [-1, "lowers the logits of"]]) {
        part.append(element("h6", name));
        const line = element("p", undefined, "tokens");
        for (const each of this.of("graph_tokens", row).filter((one) => one.sign === sign)) {
          line.append(element("span", token(each.token), "chip"), " ");
        }
        part.append(line);
      }
      return part;
    }

    examples(row) {
      const part = element("div", undefined, "examples");
      part.append(element("h6", "fires most on"));
      const found = this.of("graph_examples", row);
      if (!found.length) part.append(element("p", "no examples are tabulated"));
      for (const example of found) {
        const line = element("p", undefined, "tokens");
        line.append(element("span", number(example.activation), "value"));
        example.tokens.forEach((text, i) => {
          const made = element(i + 1 === example.here ? "b" : "span", token(text));
          const share = Math.max(0, example.activations[i] || 0) / example.activation;
          made.style.backgroundColor = `rgba(230, 159, 0, ${(0.75 * Math.min(1, share)).toFixed(2)})`;
          made.title = number(example.activations[i]);
          line.append(made, " ");
        });
        part.append(line);
      }
      return part;
    }
  }

  for (const figure of document.querySelectorAll("figure.graph")) new Graph(figure);
})();
