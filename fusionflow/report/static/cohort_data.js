/* What the page knows of the scans, and what is odd about them. */

const packed = JSON.parse(document.getElementById("cohort-data").textContent);
const count = packed.labels.length;
const everyScan = Uint32Array.from({ length: count }, (_, scan) => scan);

const numbers = (values) => Float64Array.from(values, (value) =>
  value === null ? NaN : value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);

const figures = packed.figures.map((figure) => ({
  ...figure,
  kind: "figure",
  title: figure.source ? `${figure.name}, ${figure.source}` : figure.name,
  short: figure.key.replaceAll("_", " "),
  values: numbers(figure.values),
}));

const columns = packed.columns.map((column) =>
  column.kind === "number" ? { ...column, values: numbers(column.values) } : column);

/* Robust z of a scan's figure among scans made the same way; NaN where there is none. */
function zOf(figure, scan) {
  const way = packed.ways[scan];
  const value = figure.values[scan];
  return Number.isFinite(value) && figure.scale[way] > 0
    ? (value - figure.centre[way]) / figure.scale[way] : NaN;
}

for (const figure of figures) {
  figure.z = Float64Array.from(everyScan, (scan) => zOf(figure, scan));
}

/* What is shown first: how near the fused image is to each source. */
const usual = figures.filter(({ metric }) =>
  ["psnr", "ssim", "mi", "nmi", "entropy_fused", "fusion_time"].includes(metric));

/* Numbers of participants.tsv stay as they are: dates and numbers of machines have many digits. */
function textOf(column, scan) {
  if (column.kind === "text") return column.values[column.codes[scan]];
  const value = column.values[scan];
  return column.key || !Number.isFinite(value) ? shown(value) : String(value);
}

function shown(value) {
  if (Number.isNaN(value)) return "n/a";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(5)));
}

const brief = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))) : shown(value));

/* Where the page of a scan lies, relative to this one; null if there was none. */
function addressOf(scan) {
  if (!packed.reports[scan]) return null;
  const label = packed.labels[scan];
  const [subject, session] = label.split(/_ses-(.*)/s);
  const parts = [subject, ...(session ? [`ses-${session}`] : []), "fused", `${label}_fused.html`];
  return parts.map(encodeURIComponent).join("/");
}

function nameOf(scan) {
  const address = addressOf(scan);
  if (!address) return document.createTextNode(packed.labels[scan]);
  const link = document.createElement("a");
  link.href = address;
  link.textContent = packed.labels[scan];
  return link;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* Linear between neighbours, of sorted numbers. */
function quantile(sorted, share) {
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  const high = Math.ceil(place);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

/* Scans by a column: {name, scans}, at most `most` groups; quarters of a column of numbers. */
function grouped(column, most = 12) {
  if (!column) return [{ name: "all", scans: [...everyScan] }];
  if (column.kind === "number") return quarters(column);
  const groups = column.values.map((name) => ({ name, scans: [] }));
  for (const scan of everyScan) groups[column.codes[scan]].scans.push(scan);
  if (groups.length <= most) return groups;
  const large = [...groups].sort((a, b) => b.scans.length - a.scans.length).slice(0, most - 1);
  const others = groups.filter((group) => !large.includes(group));
  return [
    ...groups.filter((group) => large.includes(group)),
    { name: `${others.length} others`, scans: others.flatMap(({ scans }) => scans) },
  ];
}

function quarters(column) {
  const known = [...everyScan].filter((scan) => !Number.isNaN(column.values[scan]));
  const sorted = known.map((scan) => column.values[scan]).sort((a, b) => a - b);
  const edges = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
  const bounds = [sorted[0], ...edges, sorted.at(-1)];
  const groups = [0, 1, 2, 3].map((part) =>
    ({ name: `${brief(bounds[part])} to ${brief(bounds[part + 1])}`, scans: [] }));
  for (const scan of known) {
    groups[edges.filter((edge) => column.values[scan] > edge).length].scans.push(scan);
  }
  const unknown = [...everyScan].filter((scan) => Number.isNaN(column.values[scan]));
  if (unknown.length) groups.push({ name: "n/a", scans: unknown });
  return groups.filter(({ scans }) => scans.length);
}
