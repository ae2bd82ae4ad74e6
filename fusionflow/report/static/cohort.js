/* Choices that a person makes, and what follows from them. */

const choice = (id) => document.getElementById(id);
const mostOutliers = 200;
const fewScans = 10;

function thresholdNow() {
  const value = Number(choice("threshold").value);
  return value > 0 ? value : 3.5;
}

const groupColumn = () => columns[Number(choice("group").value || NaN)] ?? null;

function fillChoices() {
  choice("group").append(element("option", { value: "" }, "nothing: all scans"));
  columns.forEach((column, place) => {
    const several = column.kind === "number" || column.values.length > 1;
    if (column.name !== "participant_id" && several) {
      choice("group").append(element("option", { value: place }, column.name.replaceAll("_", " ")));
    }
  });
  const offered = [...choice("group").options].filter(({ value }) => value !== "");
  const first = ["method", "site", "site_id", "center", "centre"]
    .map((name) => offered.find(({ value }) => columns[value].name.toLowerCase() === name)).find(Boolean);
  const telling = offered.find(({ value }) => // of groups of one or two nothing is summed up
    columns[value].kind === "text" && everyScan.length >= LEAST_SUMMED * columns[value].values.length);
  choice("group").value = (first ?? telling)?.value ?? "";
  choice("outlier-figure").append(element("option", { value: "" }, "any figure"));
  figures.forEach((figure, place) =>
    choice("outlier-figure").append(element("option", { value: place }, figure.title)));
}

function showPanels() {
  const column = groupColumn();
  choice("bin-label").hidden = column?.kind !== "number";
  const chosen = choice("which").value === "all" ? figures : usual;
  choice("panels").replaceChildren(...chosen.map((figure) =>
    panel(figure, column, choice("bin").checked, thresholdNow())));
}

function showOutliers() {
  const threshold = thresholdNow();
  const one = figures[Number(choice("outlier-figure").value || NaN)];
  const found = (one ? [one] : figures).flatMap((figure) =>
    [...everyScan].filter((scan) => isOdd(figure, scan, threshold)).map((scan) => ({ figure, scan, z: figure.z[scan] })));
  found.sort((a, b) => Math.abs(b.z) - Math.abs(a.z));
  const scans = new Set(found.map(({ scan }) => scan)).size;
  choice("outlier-count").textContent = found.length
    ? `${found.length.toLocaleString("en")} figures of ${scans.toLocaleString("en")} scans are beyond ${threshold}`
      + (found.length > mostOutliers ? `; here are the ${mostOutliers} farthest. A filter on “largest |z|” in the table of scans finds the others.` : ".")
    : `No figure is beyond ${threshold}.`;
  choice("outlier-table").hidden = !found.length;
  choice("outlier-table").tBodies[0].replaceChildren(...found.slice(0, mostOutliers).map(outlierRow));
  const concerned = one ? [one] : figures;
  choice("unmeasured").replaceChildren(...few(concerned), ...concerned.flatMap(unmeasured));
}

/* How many scans have their like in so few others that the MAD is a guess. */
function few(shown) {
  const concerned = [...everyScan].filter((scan) => shown.some((figure) =>
    Number.isFinite(figure.z[scan]) && figure.n[packed.ways[scan]] < fewScans)).length;
  return !concerned ? [] : [element("li", {},
    `z of ${concerned} ${concerned === 1 ? "scan" : "scans"} is a rough guess: fewer than ${fewScans} scans with that figure `
    + "were made in just the same way.")];
}

function outlierRow({ figure, scan, z }) {
  const side = z > 0 ? "high" : "low";
  const good = figure.better === (z > 0 ? "higher" : "lower");
  const judged = figure.better === "neither" ? "" : good ? ", the better side" : ", the worse side";
  return element("tr", {},
    element("th", { scope: "row" }, nameOf(scan)),
    element("td", {}, figure.title),
    element("td", {}, shown(figure.values[scan])),
    element("td", {}, shown(figure.centre[packed.ways[scan]])),
    element("td", {}, z.toFixed(1)),
    element("td", {}, side + judged));
}

/* Figures by which nothing can be measured, for more than half of the scans have the same. */
function unmeasured(figure) {
  return figure.scale.flatMap((scale, way) => (scale !== 0 || !figure.differing[way] ? [] : [element("li", {},
    `${figure.title}: the MAD is 0, for more than half of ${figure.n[way]} scans have the same figure `
    + `(${shown(figure.centre[way])}); ${figure.differing[way]} differ from it and have no z.`)]));
}

function go(step) {
  table.first = Math.max(0, table.first + step * Number(choice("rows").value));
  showRows();
}

fillChoices();
showPanels();
showOutliers();
showHead();
chooseRows();
showRows();

for (const id of ["group", "which", "bin"]) choice(id).addEventListener("change", showPanels);
choice("threshold").addEventListener("input", () => { showPanels(); showOutliers(); showRows(); });
choice("outlier-figure").addEventListener("change", showOutliers);
choice("find").addEventListener("input", () => { table.find = choice("find").value.trim(); chooseRows(); showRows(); });
choice("columns").addEventListener("change", () => { showHead(); chooseRows(); showRows(); });
choice("rows").addEventListener("change", () => { table.first = 0; showRows(); });
choice("previous").addEventListener("click", () => go(-1));
choice("next").addEventListener("click", () => go(1));
choice("save").addEventListener("click", saveRows);
