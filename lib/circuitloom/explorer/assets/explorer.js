// Client-side callbacks of the explorer: the address that follows the view, the attribution graph, keys, grid cells.
window.dash_clientside = window.dash_clientside || {};

(function () {
  const noUpdate = window.dash_clientside.no_update;
  // The attribution graph on the page.
  let graph = null;

  // The address with some parameters changed; empty ones are removed.
  function changed(parameters, path) {
    const url = new URL(window.location.href);
    if (path) url.pathname = path;
    for (const [name, value] of Object.entries(parameters)) {
      if (value === null || value === undefined || value === "") url.searchParams.delete(name);
      else url.searchParams.set(name, value);
    }
    return url;
  }

  // Write the state of the view into the address without navigating.
  function remember(parameters) {
    const url = changed(parameters);
    if (url.href !== window.location.href) window.history.replaceState(window.history.state, "", url);
    return noUpdate;
  }

  // Navigate within the app.
  function go(url) {
    window.history.pushState(null, "", url);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  }

  window.dash_clientside.circuitloom = {
    // After a page change: set the title, mark the page in the navigation bar.
    arrive(where) {
      if (!where) return noUpdate;
      document.title = where.title;
      document.querySelectorAll("nav a").forEach((a) => {
        const here = new URL(a.href).pathname.slice(1) === (where.page === "feature" ? "features" : where.page);
        a.classList.toggle("current", here);
        if (here) a.setAttribute("aria-current", "page");
        else a.removeAttribute("aria-current");
      });
      if (window.location.hash) document.querySelector(window.location.hash)?.scrollIntoView();
      return where.page;
    },
    // A control above a page changes its address and removes the parameters that depended on it.
    choose() {
      // `triggered` also lists controls that were only just created, with unchanged values
      for (const { prop_id, value: chosen } of window.dash_clientside.callback_context.triggered) {
        const { go: name, now } = JSON.parse(prop_id.slice(0, -".value".length));
        const value = chosen === null || chosen === undefined ? "" : String(chosen);
        if (value === now) continue;
        const dependent = { trace: ["share", "groups", "node"], run: ["filter", "sort", "layer"], search: ["sort"] }[name] || [];
        go(changed({ ...Object.fromEntries(dependent.map((each) => [each, null])), [name]: value }));
        break;
      }
      return noUpdate;
    },
    // Draw an attribution graph. The markup comes from our own server, which escapes all text in it.
    drawGraph(markup, node) {
      const place = document.getElementById("circuit-graph");
      place.innerHTML = markup;
      graph = new window.AttributionGraph(place.querySelector("figure"), { marking: true });
      graph.show(graph.byNumber.get(node) || null);
      return [];
    },
    rememberCircuit(share, groups, node, preset) {
      if (graph) graph.show(graph.byNumber.get(node) || null);
      // without the parameter, the page shows the saved groups
      return remember({ share, groups: groups === preset ? null : groups || "none", node });
    },
    rememberEdit(at, clicks, features, kind, strength) {
      const edited = clicks && features;
      const hasStrength = edited && ["scale", "clamp", "add"].includes(kind);
      return remember({
        at, features: edited ? features : null, kind: edited ? kind : null, strength: hasStrength ? strength : null,
      });
    },
    // Settings with their default values are left out of the address.
    rememberGeneration(clicks, edits, values, ids, defaults) {
      const settings = Object.fromEntries(ids.map(({ generate: name }, i) =>
        [name, clicks && edits && values[i] !== defaults[name] ? values[i] : null]));
      return remember({ ...settings, edits: clicks ? edits : null });
    },
    rememberGrid(filter, columns) {
      const order = (columns || [])
        .filter((column) => column.sort)
        .sort((a, b) => a.sortIndex - b.sortIndex)
        .map((column) => ({ colId: column.colId, sort: column.sort }));
      const text = (value, empty) => (empty ? null : JSON.stringify(value));
      return remember({
        filter: text(filter, !filter || !Object.keys(filter).length), sort: text(order, !order.length),
      });
    },
    submitPrompt(clicks, submitted, values, ids) {
      if (!clicks && !submitted.some(Boolean)) return noUpdate;
      const form = Object.fromEntries(ids.map((id, i) => [id.form, values[i]]));
      const removed = { at: null, features: null, kind: null, strength: null, share: null, groups: null, node: null };
      go(changed({ ...removed, ...form }, "/try"));
      return noUpdate;
    },
  };

  // Events of graph.js set what the callbacks of the circuit view listen to.
  const setProps = (id, props) => window.dash_clientside.set_props(id, props);
  document.addEventListener("graph-select", ({ detail: { node } }) =>
    setProps("circuit-node", { value: node === null ? null : String(node) }));
  document.addEventListener("graph-mark", ({ detail: { nodes } }) => setProps("circuit-marked", { data: nodes }));
  document.addEventListener("graph-prune", ({ detail: { share } }) => setProps("circuit-share", { data: share }));

  const functions = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  functions.short = (value) => (value === null || value === undefined ? "" : Number(value).toPrecision(4).replace(/\.?0+$/, ""));

  // Fractions with six digits, everything else unchanged.
  functions.digits = (value) =>
    value === null || value === undefined ? "NULL" : typeof value !== "number" || Number.isInteger(value) ? value : String(Number(value.toPrecision(6)));

  const components = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  components.FeatureLink = function (props) {
    if (!props.data) return null;
    const follow = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(props.data.href);
    };
    return React.createElement("a", { href: props.data.href, onClick: follow }, String(props.value));
  };

  // Keys.
  const PAGES = { o: "/", d: "/dictionaries", f: "/features", c: "/circuits", t: "/try", s: "/sql" };
  const KEYS = [
    ["g then o d f c t s", "overview, dictionaries, features, circuits, try, SQL"],
    ["/", "the search or text field of the page"],
    ["j k", "next and previous feature"],
    ["Ctrl+Enter", "run the SQL"],
    ["Enter on a row", "open its feature"],
    ["?", "this list; Escape closes it"],
  ];
  let leading = false;

  function help() {
    let dialog = document.querySelector("dialog");
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.setAttribute("aria-label", "keys");
      for (const [key, what] of KEYS) {
        const line = document.createElement("p");
        const name = document.createElement("kbd");
        name.textContent = key;
        line.append(name, " " + what);
        dialog.append(line);
      }
      document.body.append(dialog);
    }
    dialog.showModal();
  }

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (target.id === "sql-text" && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      document.getElementById("sql-run").click();
      return;
    }
    const cell = target.closest?.(".ag-cell");
    if (cell && event.key === "Enter") {
      cell.closest(".ag-row") && document.querySelector(`.ag-row[row-id="${CSS.escape(cell.closest(".ag-row").getAttribute("row-id"))}"] a`)?.click();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest?.("input, textarea, [contenteditable]")) return;
    if (leading) {
      leading = false;
      if (PAGES[event.key]) go(PAGES[event.key]);
      return;
    }
    if (event.key === "g") leading = true;
    else if (event.key === "?") help();
    else if (event.key === "/") {
      const field = document.querySelector("main input[type=search], main textarea, main input[type=text]");
      if (field) {
        event.preventDefault();
        field.focus();
      }
    } else if (event.key === "j") document.getElementById("feature-next")?.click();
    else if (event.key === "k") document.getElementById("feature-previous")?.click();
  });
})();
