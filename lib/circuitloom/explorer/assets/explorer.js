// What the browser does by itself: addresses that follow what is shown, keys, cells of grids.
window.dash_clientside = window.dash_clientside || {};

(function () {
  const stay = window.dash_clientside.no_update;

  // The address with some parameters changed; those that are empty are left out.
  function changed(parameters, path) {
    const url = new URL(window.location.href);
    if (path) url.pathname = path;
    for (const [name, value] of Object.entries(parameters)) {
      if (value === null || value === undefined || value === "") url.searchParams.delete(name);
      else url.searchParams.set(name, value);
    }
    return url;
  }

  // Write what is shown into the address, without loading anything.
  function remember(parameters) {
    const url = changed(parameters);
    if (url.href !== window.location.href) window.history.replaceState(window.history.state, "", url);
    return stay;
  }

  // Go to an address within the app.
  function go(url) {
    window.history.pushState(null, "", url);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  }

  window.dash_clientside.circuitloom = {
    // A new page is there: its title, its place in the bar.
    arrive(where) {
      if (!where) return stay;
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
    // A choice above a page changes its address; what belonged to the old choice goes.
    choose() {
      // a page's controls are all named when it is new, and may still be when one of them changes
      for (const { prop_id, value: given } of window.dash_clientside.callback_context.triggered) {
        const { go: name, now } = JSON.parse(prop_id.slice(0, -".value".length));
        const value = given === null || given === undefined ? "" : String(given);
        if (value === now) continue;
        const old = { trace: ["share", "groups", "node"], run: ["filter", "sort", "layer"], search: ["sort"] }[name] || [];
        go(changed({ ...Object.fromEntries(old.map((each) => [each, null])), [name]: value }));
        break;
      }
      return stay;
    },
    rememberCircuit(share, groups, node) {
      return remember({ share, groups, node });
    },
    rememberChange(at, clicks, features, kind, strength) {
      const given = clicks && features;
      const needs = given && (kind === "scale" || kind === "clamp");
      return remember({
        at, features: given ? features : null, kind: given ? kind : null, strength: needs ? strength : null,
      });
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
      if (!clicks && !submitted.some(Boolean)) return stay;
      const given = Object.fromEntries(ids.map((id, i) => [id.form, values[i]]));
      const gone = { at: null, features: null, kind: null, strength: null, share: null, groups: null, node: null };
      go(changed({ ...gone, ...given }, "/try"));
      return stay;
    },
  };

  const functions = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  functions.short = (value) => (value === null || value === undefined ? "" : Number(value).toPrecision(4).replace(/\.?0+$/, ""));

  // Numbers in six digits, everything else as it is.
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
  const HELP = [
    ["g then o d f c t s", "overview, dictionaries, features, circuits, try, SQL"],
    ["/", "search, or the text of the page"],
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
      for (const [key, what] of HELP) {
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
    const at = event.target;
    if (at.id === "sql-text" && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      document.getElementById("sql-run").click();
      return;
    }
    const cell = at.closest?.(".ag-cell");
    if (cell && event.key === "Enter") {
      cell.closest(".ag-row") && document.querySelector(`.ag-row[row-id="${CSS.escape(cell.closest(".ag-row").getAttribute("row-id"))}"] a`)?.click();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || at.closest?.("input, textarea, [contenteditable]")) return;
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
