/* Filter and sort for the table of verdicts. Without this script the table is whole; nothing is fetched. */
(() => {
  "use strict";
  const FILTERS = [
    ["verdict", "Verdict"],
    ["subject", "Subject"],
    ["chapter", "Chapter"],
    ["by", "Claimed by"],
  ];

  function start(table) {
    const rows = Array.from(table.tBodies[0].rows);
    const original = rows.slice();
    const bar = document.createElement("div");
    bar.className = "tg-filters";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Filter the verdicts");
    const selects = FILTERS.map(([key, name]) => addSelect(bar, rows, key, name));
    const text = addText(bar);
    const told = document.createElement("p");
    told.className = "tg-count";
    told.setAttribute("aria-live", "polite");
    const clear = document.createElement("button");
    clear.type = "button";
    clear.textContent = "Show all";
    bar.append(clear, told);
    table.closest(".tg-scroll").before(bar);

    function apply() {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const chosen = selects.every(([key, select]) => !select.value || row.dataset[key] === select.value);
        const content = row.textContent.toLowerCase();
        row.hidden = !(chosen && words.every((word) => content.includes(word)));
        shown += row.hidden ? 0 : 1;
      }
      told.textContent = `${shown} of ${rows.length} rows shown`;
    }

    selects.forEach(([, select]) => select.addEventListener("change", apply));
    text.addEventListener("input", apply);
    clear.addEventListener("click", () => {
      selects.forEach(([, select]) => { select.value = ""; });
      text.value = "";
      apply();
    });
    addSorting(table, original);
    apply();
  }

  function addSelect(bar, rows, key, name) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    const values = Array.from(new Set(rows.map((row) => row.dataset[key])));
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.dataset.filter = key;
    label.append(`${name} `, select);
    bar.append(label);
    return [key, select];
  }

  function addText(bar) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "text";
    input.placeholder = "words";
    label.append("Contains ", input);
    bar.append(label);
    return input;
  }

  /* A click sorts by a column, one more the other way round, a third gives the register's order back. */
  function addSorting(table, original) {
    const body = table.tBodies[0];
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "tg-sort";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const next = { none: "ascending", ascending: "descending", descending: "none" }[before || "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next !== "none") head.setAttribute("aria-sort", next);
        const sorted = original.slice();
        if (next !== "none") sorted.sort((a, b) => compare(a.cells[column], b.cells[column]));
        if (next === "descending") sorted.reverse();
        body.append(...sorted);
      });
    });
  }

  function compare(a, b) {
    const [x, y] = [key(a), key(b)];
    if (typeof x === "number" && typeof y === "number") return x - y;
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return x.localeCompare(y);
  }

  function key(cell) {
    const text = cell.textContent.trim();
    const number = Number.parseFloat(text.replace("\u2212", "-"));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("table.tg-verdicts").forEach(start);
  });
})();
