"use strict";
// Charts of figures by slice, and the bands of some slices: both follow the axial slice.

const charts = [...document.querySelectorAll(".chart")];
const panels = [...document.querySelectorAll("[data-panel]")];
const sources = { mri: "MRI", pet: "PET", fused: "fused" };

function showFigures() {
  const { at, of } = scan.planes.axial;
  const slice = at[place.axial];
  for (const chart of charts) {
    const lines = Object.entries(scan.figures[chart.dataset.metric]);
    const figures = lines.map(([name, values]) => `${sources[name]} ${values[slice] ?? "–"}`).join(", ");
    const words = `slice ${slice}: ${figures}`;
    const { width } = chart.querySelector("svg").viewBox.baseVal;
    const across = of > 1 ? (slice / (of - 1)) * width : width / 2;
    const cursor = chart.querySelector(".cursor");
    cursor.setAttribute("x1", across);
    cursor.setAttribute("x2", across);
    chart.setAttribute("aria-valuenow", slice);
    chart.setAttribute("aria-valuetext", words);
    document.querySelector(`[data-values=${chart.dataset.metric}]`).textContent = words;
  }
}

function showBands() {
  const apart = panels.map((panel) => Math.abs(panel.dataset.panel - place.axial));
  const nearest = panels[apart.indexOf(Math.min(...apart))];
  for (const panel of panels) panel.hidden = panel !== nearest;
  for (const button of document.querySelectorAll("[data-bands]")) {
    button.setAttribute("aria-pressed", String(button.dataset.bands === nearest.dataset.panel));
  }
}

followers.push((plane) => {
  if (plane !== "axial") return;
  showFigures();
  showBands();
});

for (const button of document.querySelectorAll("[data-bands]")) {
  button.addEventListener("click", () => go("axial", Number(button.dataset.bands)));
}

const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -Infinity, End: Infinity };
for (const chart of charts) {
  chart.addEventListener("click", (event) => {
    const box = chart.getBoundingClientRect();
    goToSlice("axial", ((event.clientX - box.left) / box.width) * (scan.planes.axial.of - 1));
  });
  chart.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    go("axial", place.axial + steps[event.key]);
  });
}

begin().then(choose);
