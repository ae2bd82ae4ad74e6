/* A panel for each figure: a box and a dot a scan by group, or dots over a column of numbers. */

const WIDE = 420;
const ROW = 34;
const FOOT = 24;
const RIGHT = 22;
const LEAST_BOXED = 5; // quartiles of fewer are hardly any
const LEAST_SUMMED = 3; // nor is a median
const FEW_DOTS = 60;
const MANY_DOTS = 300;

const svg = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};

function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  if (low > high) return null;
  const pad = low === high ? Math.abs(low) * 0.05 || 1 : (high - low) * 0.03;
  return [low - pad, high + pad];
}

/* Three to six round numbers within a range, or a few less. */
function ticks([low, high], most = 5) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((by) => by * power).find((by) => by >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) found.push(at * step);
  return found;
}

/* The same scan lies at the same height in every panel; neighbours lie apart. */
const jitter = (scan) => ((scan * 0.6180339887) % 1) - 0.5;

/* One path for all dots, one for each place on the screen that has any. */
function dots(places) {
  const taken = new Set();
  let path = "";
  for (const [x, y] of places) {
    const at = `M${x.toFixed(0)} ${y.toFixed(0)}h0`;
    if (!taken.has(at)) { taken.add(at); path += at; }
  }
  const size = places.length > MANY_DOTS ? " many" : places.length < FEW_DOTS ? " few" : "";
  return svg("path", { class: `dots${size}`, d: path });
}

const crosses = (places) => svg("path", {
  class: "odd",
  d: places.map(([x, y]) => `M${(x - 4).toFixed(1)} ${(y - 4).toFixed(1)}l8 8m0 -8l-8 8`).join(""),
});

const isOdd = (figure, scan, threshold) => Math.abs(figure.z[scan]) > threshold;

function draw(picture, figure, places, threshold) {
  const odd = places.filter(([, , scan]) => isOdd(figure, scan, threshold));
  picture.append(dots(places.filter(([, , scan]) => !isOdd(figure, scan, threshold))));
  if (odd.length) picture.append(crosses(odd));
  picture.places = places;
}

function axis(picture, limits, x, y) {
  for (const tick of ticks(limits)) {
    picture.append(
      svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: 0, y2: y }),
      svg("text", { class: "soft", x: x(tick), y: y + 14, "text-anchor": "middle" }, brief(tick)),
    );
  }
}

function strips(figure, groups, threshold) {
  const limits = range(figure.values);
  if (!limits) return null;
  const left = Math.min(130, 12 + 7 * Math.max(...groups.map(({ name }) => name.length)));
  const high = groups.length * ROW;
  const x = (value) => left + ((value - limits[0]) / (limits[1] - limits[0])) * (WIDE - left - RIGHT);
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${high + FOOT}`, role: "img" });
  axis(picture, limits, x, high);
  const places = [];
  const said = [];
  const boxes = [];
  groups.forEach(({ name, scans }, row) => {
    const middle = (row + 0.5) * ROW;
    const finite = scans.filter((scan) => Number.isFinite(figure.values[scan]));
    const label = name.length > 17 ? `${name.slice(0, 16)}…` : name;
    picture.append(svg("text", { x: 0, y: middle + 4 }, label));
    for (const scan of finite) places.push([x(figure.values[scan]), middle + jitter(scan) * 22, scan]);
    if (!finite.length) { said.push(`${name}: none`); return; }
    const sorted = finite.map((scan) => figure.values[scan]).sort((a, b) => a - b);
    const [low, median, top] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
    said.push(finite.length < LEAST_SUMMED ? `${name}: ${sorted.map(brief).join(" and ")}`
      : `${name}: median ${brief(median)}, quartiles ${brief(low)} and ${brief(top)}, n ${finite.length}`);
    const [y, height] = [middle - 12, 24];
    if (finite.length >= LEAST_BOXED) {
      boxes.push(svg("rect", { class: "box", x: x(low), y, width: Math.max(1, x(top) - x(low)), height }));
    }
    if (finite.length >= LEAST_SUMMED) boxes.push(svg("line", { class: "median", x1: x(median), x2: x(median), y1: y, y2: y + height }));
  });
  draw(picture, figure, places, threshold);
  picture.append(...boxes);
  picture.setAttribute("aria-label", `${figure.title}. ${said.join(". ")}.`);
  return picture;
}

function scatter(figure, column, threshold) {
  const across = range(column.values);
  const up = range(figure.values);
  if (!across || !up) return null;
  const [left, high] = [56, 190];
  const x = (value) => left + ((value - across[0]) / (across[1] - across[0])) * (WIDE - left - RIGHT);
  const y = (value) => high - ((value - up[0]) / (up[1] - up[0])) * (high - 8);
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${high + FOOT}`, role: "img" });
  axis(picture, across, x, high);
  for (const tick of ticks(up)) {
    picture.append(
      svg("line", { class: "axis", x1: left, x2: WIDE - RIGHT, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "soft", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, brief(tick)),
    );
  }
  const known = [...everyScan].filter((scan) =>
    Number.isFinite(column.values[scan]) && Number.isFinite(figure.values[scan]));
  draw(picture, figure, known.map((scan) => [x(column.values[scan]), y(figure.values[scan]), scan]), threshold);
  picture.setAttribute("aria-label", `${figure.title} over ${column.name}, ${known.length} scans`);
  return picture;
}

function panel(figure, column, inQuarters, threshold) {
  const plotted = column?.kind === "number" && !inQuarters
    ? scatter(figure, column, threshold) : strips(figure, grouped(column), threshold);
  const better = figure.better === "neither" ? "" : `, ${figure.better} is better`;
  const units = figure.units === "1" ? "" : ` (${figure.units})`;
  const made = element("figure", { "data-figure": figure.key },
    element("figcaption", {}, figure.title, element("span", {}, units + better)));
  made.append(plotted ?? element("p", {}, "No scan has a finite figure."));
  const lacking = everyScan.filter((scan) => !Number.isFinite(figure.values[scan])).length;
  if (plotted && lacking) made.append(element("p", { class: "soft" }, `Not drawn: ${lacking} without a finite figure.`));
  if (plotted) {
    const said = element("p", { class: "pointed screen" });
    made.append(said);
    const tell = (event) => point(figure, plotted, said, event);
    plotted.addEventListener("pointermove", tell);
    plotted.addEventListener("click", tell);
  }
  return made;
}

/* Say which scan is nearest to the pointer. */
function point(figure, picture, said, event) {
  const box = picture.getBoundingClientRect();
  const scale = WIDE / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  let best = 12 ** 2;
  let nearest = null;
  for (const [left, top, scan] of picture.places) {
    const away = (left - x) ** 2 + (top - y) ** 2;
    if (away < best) { best = away; nearest = scan; }
  }
  if (nearest === null) return;
  const z = figure.z[nearest];
  said.replaceChildren(nameOf(nearest),
    `: ${shown(figure.values[nearest])}${Number.isNaN(z) ? "" : `, z ${z.toFixed(1)}`}`);
}
