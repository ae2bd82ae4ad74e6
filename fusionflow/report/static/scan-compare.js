"use strict";
// Two images of a slice over each other: wiped, flickered or swapped.

const compared = Object.fromEntries(
  ["comparing", "compare-plane", "compare-at", "compare-said", "under", "over", "flicker", "swap", "rate", "wipe"]
    .map((name) => [name, document.getElementById(name)]));
const chosen = { under: document.getElementById("compare-under"), over: document.getElementById("compare-over") };
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
let alternating = false; // the whole of one image, in place of a wipe
let second = false; // which of them
let timer = 0;

function showCompared() {
  const share = Number(compared.wipe.value);
  const hidden = alternating ? (second ? 0 : 100) : share;
  compared.over.style.clipPath = `inset(0 0 0 ${hidden}%)`;
  const [first, other] = [chosen.under, chosen.over].map((choice) => choice.selectedOptions[0].text);
  compared["compare-said"].textContent = alternating ? (second ? other : first) : `${first} | ${other}`;
  compared.flicker.setAttribute("aria-pressed", String(timer !== 0));
  compared.wipe.setAttribute("aria-valuetext", `${share} % ${first}`);
  compared.rate.setAttribute("aria-valuetext", compared.rate.value);
}

function swap() {
  second = alternating ? !second : true;
  alternating = true;
  showCompared();
}

function stop() {
  clearInterval(timer);
  timer = 0;
}

function flicker(on) {
  stop();
  if (on && lessMotion.matches) return swap();
  if (on) timer = setInterval(swap, 1000 / Number(compared.rate.value));
  alternating = on;
  showCompared();
}

async function choose() {
  const plane = compared["compare-plane"].value;
  for (const [name, choice] of Object.entries(chosen)) {
    compared[name].dataset.image = choice.value;
    compared[name].dataset.plane = plane;
  }
  const { aspect, sides } = scan.planes[plane];
  const frame = compared.under.parentElement;
  frame.style.aspectRatio = aspect;
  frame.querySelector(".left").textContent = sides[0];
  frame.querySelector(".right").textContent = sides[1];
  compared["compare-at"].dataset.slider = plane;
  compared["compare-at"].closest(".tools").querySelector("[data-said]").dataset.said = plane;
  showPlace(plane);
  showCompared();
  await draw(plane);
}

for (const choice of [compared["compare-plane"], chosen.under, chosen.over]) choice.addEventListener("change", choose);
compared.flicker.addEventListener("click", () => flicker(timer === 0));
compared.swap.addEventListener("click", () => { stop(); swap(); });
compared.rate.addEventListener("input", () => (timer ? flicker(true) : showCompared()));
compared.wipe.addEventListener("input", () => { stop(); alternating = false; showCompared(); });
compared.comparing.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  if (event.key === "f") flicker(timer === 0);
  if (event.key === "s") { stop(); swap(); }
});
addEventListener("beforeprint", stop);
