// Sorts tables by a click, filters the list of items, and lights up what belongs to one variant. Without it the page reads.
(() => {
  "use strict";
  const all = (root, selector) => Array.from(root.querySelectorAll(selector));

  // Sorting: what is not known stays at the end, whichever way the others go.
  const keyOf = (row, column, isText) => {
    const cell = row.cells[column];
    if (isText) return (cell.dataset.value ?? cell.textContent).trim();
    // Where the cell has no value of its own, the number that it shows, if it shows one.
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text === "" || Number.isNaN(Number(text)) ? null : Number(text);
  };

  // By its numbers, decimals included: item 10 after item 2, and @0.25 before @0.5.
  const compareTexts = (a, b) => {
    const [one, other] = [a, b].map((text) => text.split(/(\d+(?:\.\d+)?)/));
    for (let i = 0; i < Math.min(one.length, other.length); i += 1) {
      const order = i % 2 ? Number(one[i]) - Number(other[i]) : one[i].localeCompare(other[i], "en");
      if (order) return order;
    }
    return one.length - other.length;
  };

  const sort = (table, head, isUp) => {
    const column = head.cellIndex, isText = head.dataset.sort === "text";
    const compare = (a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      const order = isText ? compareTexts(a.key, b.key) : a.key - b.key;
      return isUp ? order : -order;
    };
    for (const body of all(table, "tbody.sorted")) {
      const rows = Array.from(body.rows, (row) => ({ row, key: keyOf(row, column, isText) }));
      body.append(...rows.sort(compare).map((it) => it.row));
    }
    for (const other of all(table, "th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  };

  for (const table of all(document, "table.sortable")) {
    for (const head of all(table, "th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(table, head, now ? now === "descending" : head.dataset.sort !== "down");
      });
    }
  }

  // Filters: a row stays where it is everything that was chosen.
  for (const list of all(document, "details.items")) {
    const bar = list.querySelector(".filters");
    const controls = all(bar, "[data-filter]"), rows = all(list, "tbody.sorted tr");
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    // Not an attribute of every row, which would be a fifth of the list's bytes: tasks and outcomes stand in the cells.
    const columns = new Map(all(list, "th[data-column]").map((head) => [head.dataset.column, head.cellIndex]));
    const isWanted = (row) => controls.every(({ value, dataset: { filter } }) => {
      if (value === "") return true;
      if (filter === "text") return texts.get(row).includes(value.toLowerCase());
      return value === (columns.has(filter) ? row.cells[columns.get(filter)].textContent : row.dataset[filter]);
    });
    const apply = () => {
      for (const row of rows) row.hidden = !isWanted(row);
      bar.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };
    for (const control of controls) control.addEventListener("input", apply);
    bar.hidden = false;
    apply();  // a browser that goes back brings back what was chosen
  }

  // A variant under the pointer, or with the focus, is lit in table, figure and map of its setting.
  let lit = [];
  const light = (event) => {
    const found = event.target.closest?.("[data-variant]");
    for (const it of lit) it.classList.remove("lit");
    lit = [];
    for (const told of all(document, ".told")) told.textContent = told.dataset.rest;
    if (!found || found.closest(".items")) return;
    const section = found.closest("section");
    lit = all(section, "[data-variant]").filter(
      (it) => it.dataset.variant === found.dataset.variant && !it.closest(".items"));
    for (const it of lit) it.classList.add("lit");
    const words = lit.find((it) => it.dataset.told)?.dataset.told, told = section.querySelector(".told");
    if (told && words) told.textContent = words;
  };
  for (const kind of ["pointerover", "focusin", "click"]) document.addEventListener(kind, light);
})();
