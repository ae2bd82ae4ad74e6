/* The table of scans: sorted, filtered, and a part of it shown. */

const worst = { // the largest |z| of each scan
  name: "largest |z|", key: "worst", kind: "number",
  values: Float64Array.from(everyScan, (scan) => {
    const known = figures.map(({ z }) => Math.abs(z[scan])).filter((z) => !Number.isNaN(z));
    return known.length ? Math.max(...known) : NaN;
  }),
};

const table = { sort: null, descending: false, filters: new Map(), find: "", first: 0, rows: [...everyScan] };
const scanColumn = { name: "scan", kind: "text", values: packed.labels, codes: everyScan };
const heading = (column) => column.short ?? column.name;

function tableColumns() {
  const all = document.getElementById("columns").value === "all";
  const varies = (column) => column.kind !== "text" || column.values.length > 1;
  const usualTexts = columns.filter((column) => column.name !== "participant_id" && varies(column));
  return [scanColumn, ...(all ? columns : usualTexts), worst, ...(all ? figures : usual)];
}

/* A test of numbers from what a person types; null if it says nothing that is understood. */
function numberTest(text) {
  const number = "([-−+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:e[-+]?\\d+)?|[-−]?∞)";
  const value = (part) => Number(part.replace("−", "-").replace("∞", "Infinity"));
  if (/^n\/?a$/i.test(text)) return Number.isNaN;
  const between = text.match(new RegExp(`^${number}\\s*(?:\\.\\.|…)\\s*${number}$`, "i"));
  if (between) {
    const [low, high] = [value(between[1]), value(between[2])];
    return (x) => x >= low && x <= high;
  }
  const found = text.match(new RegExp(`^(>=|<=|≥|≤|>|<|=)?\\s*${number}$`, "i"));
  if (!found) return null;
  const limit = value(found[2]);
  return {
    ">": (x) => x > limit, "<": (x) => x < limit, "=": (x) => x === limit,
    ">=": (x) => x >= limit, "≥": (x) => x >= limit, "<=": (x) => x <= limit, "≤": (x) => x <= limit,
  }[found[1] ?? "="];
}

/* A test of scans from a column and a text; null if it is not understood. */
function scanTest(column, text) {
  if (column.kind === "text") {
    const part = text.toLowerCase();
    const fits = column.values.map((value) => value.toLowerCase().includes(part));
    return (scan) => fits[column.codes[scan]];
  }
  const test = numberTest(text);
  return test && ((scan) => test(column.values[scan]));
}

function findTest(text) {
  const tests = [scanColumn, ...columns.filter(({ kind }) => kind === "text")].map((column) => scanTest(column, text));
  return (scan) => tests.some((test) => test(scan));
}

const alphabet = new Intl.Collator(undefined, { numeric: true });

/* How scans compare by a column; what is not known comes last either way. */
function order(column, descending) {
  const sign = descending ? -1 : 1;
  if (column.kind === "text") {
    const sorted = column.values.map((_, code) => code)
      .sort((a, b) => alphabet.compare(column.values[a], column.values[b]));
    const rank = new Uint32Array(sorted.length);
    sorted.forEach((code, place) => { rank[code] = place; });
    return (a, b) => sign * (rank[column.codes[a]] - rank[column.codes[b]]) || a - b;
  }
  const { values } = column;
  return (a, b) => {
    const [x, y] = [values[a], values[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return (x === y ? 0 : sign * (x < y ? -1 : 1)) || a - b;
  };
}

function chooseRows() {
  const tests = [...table.filters.values()].map(({ test }) => test).filter(Boolean);
  if (table.find) tests.push(findTest(table.find));
  table.rows = [...everyScan].filter((scan) => tests.every((test) => test(scan)));
  if (table.sort) table.rows.sort(order(table.sort, table.descending));
  table.first = 0;
}

function showHead() {
  const shownColumns = tableColumns();
  for (const column of table.filters.keys()) if (!shownColumns.includes(column)) table.filters.delete(column);
  const sorting = element("tr");
  const filtering = element("tr", { class: "filters screen" });
  for (const column of shownColumns) {
    const kind = column.kind === "text" ? "text" : "number";
    const button = element("button", { type: "button" }, heading(column));
    if (column.title) button.title = column.title;
    const head = element("th", { scope: "col", class: kind }, button);
    button.addEventListener("click", () => {
      table.descending = table.sort === column ? !table.descending : column === worst;
      table.sort = column;
      chooseRows();
      showSorting();
      showRows();
    });
    head.column = column;
    sorting.append(head);
    const input = element("input", { type: "text", "aria-label": `filter ${heading(column)}`,
      placeholder: kind === "text" ? "part" : "> 0", value: table.filters.get(column)?.text ?? "" });
    input.addEventListener("input", () => {
      const text = input.value.trim();
      const test = text ? scanTest(column, text) : null;
      if (text) table.filters.set(column, { text, test }); else table.filters.delete(column);
      input.setAttribute("aria-invalid", String(Boolean(text) && !test));
      chooseRows();
      showRows();
    });
    filtering.append(element("td", {}, input));
  }
  document.querySelector("#scan-table thead").replaceChildren(sorting, filtering);
  document.getElementById("scan-table").style.setProperty("--columns", shownColumns.length);
  showSorting();
}

function showSorting() {
  for (const head of document.querySelectorAll("#scan-table thead th")) {
    const by = head.column === table.sort;
    head.setAttribute("aria-sort", !by ? "none" : table.descending ? "descending" : "ascending");
    head.firstChild.textContent = heading(head.column) + (!by ? "" : table.descending ? " ↓" : " ↑");
  }
}

function showRows() {
  const step = Number(document.getElementById("rows").value);
  const part = table.rows.slice(table.first, table.first + step);
  const threshold = thresholdNow();
  const shownColumns = tableColumns().slice(1);
  document.querySelector("#scan-table tbody").replaceChildren(...part.map((scan) => {
    const row = element("tr", {}, element("th", { scope: "row" }, nameOf(scan)));
    for (const column of shownColumns) {
      const cell = element("td", column.kind === "text" ? { class: "text" } : {}, textOf(column, scan));
      if (column.kind === "figure" && isOdd(column, scan, threshold)) {
        cell.className = "odd";
        cell.prepend(column.z[scan] > 0 ? "▲ " : "▼ ");
        cell.title = `z ${column.z[scan].toFixed(1)}`;
      }
      row.append(cell);
    }
    return row;
  }));
  const unclear = [...table.filters].filter(([, { test }]) => !test).map(([column]) => heading(column));
  document.getElementById("found").textContent =
    `${table.rows.length.toLocaleString("en")} of ${count.toLocaleString("en")} scans`
    + (unclear.length ? `; the filter of ${unclear.join(", ")} is not understood: write > 0.8, <= 3, 0.5..0.8 or n/a` : "");
  const last = Math.min(table.first + step, table.rows.length);
  document.getElementById("place").textContent = table.rows.length ? `${table.first + 1} to ${last}` : "none";
  document.getElementById("previous").disabled = table.first === 0;
  document.getElementById("next").disabled = last >= table.rows.length;
}

/* What is found, all columns and rows of it, as a file. */
function saveRows() {
  const all = [scanColumn, ...columns, worst, ...figures];
  const cell = (text) => String(text).replace(/[\t\r\n]+/g, " ");
  const number = (value) => (Number.isNaN(value) ? "n/a" : String(value).replace("Infinity", "inf"));
  const value = (column, scan) => (column.kind === "text" ? textOf(column, scan) : number(column.values[scan]));
  const lines = [all.map((column) => column.key ?? column.name),
    ...table.rows.map((scan) => all.map((column) => value(column, scan)))];
  const text = lines.map((line) => `${line.map(cell).join("\t")}\n`).join("");
  const link = element("a", { download: "scans.tsv", href: URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
