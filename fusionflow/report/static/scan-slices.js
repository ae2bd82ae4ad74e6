"use strict";
// The slices of the page: one place for each plane, and every canvas that shows it.

const scan = JSON.parse(document.getElementById("scan-data").textContent);
const place = {}; // plane -> which of the slices that the page holds
const followers = []; // called with the plane whose place changed
const inks = [[0x40, 0xe0, 0x60], [0xff, 0xd0, 0x40]]; // of the outlines, by level
const outlined = [64, 153]; // 25 % and 60 % of 255
const decoded = new Map(); // the slices that were shown last
const mostDecoded = 90;
let colours; // of 256 * mri + pet, as pixels of a canvas

const pixel = (r, g, b) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
const grey = (level) => pixel(level, level, level);

function pixelsOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

async function levelsOf(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const { data, width, height } = pixelsOf(image);
  const levels = new Uint8Array(width * height);
  for (let at = 0; at < levels.length; at++) levels[at] = data[4 * at];
  return { levels, width, height };
}

async function decode(plane, index) {
  const { mri, pet, fused, aspect } = scan.planes[plane];
  const [of, over, both] = await Promise.all([mri, pet, fused].map((uris) => levelsOf(uris[index])));
  const { width, height } = of;
  return { width, height, aspect, mri: of.levels, pet: over.levels, fused: both.levels };
}

function sliceAt(plane, index) {
  const key = `${plane} ${index}`;
  const found = decoded.get(key) ?? decode(plane, index);
  decoded.delete(key); // put last: the first goes when there are too many
  decoded.set(key, found);
  if (decoded.size > mostDecoded) decoded.delete(decoded.keys().next().value);
  return found;
}

// Returns the level that the PET crosses here, or -1.
function outlineAt({ pet, width }, at) {
  return outlined.findLastIndex((level) => pet[at] >= level &&
    [at - 1, at + 1, at - width, at + width].some((beside) => pet[beside] < level));
}

function isMriField({ width, height, aspect }, at) {
  const across = Math.floor(((at % width) * 8) / width);
  const down = Math.floor((Math.floor(at / width) * 8) / (height * aspect));
  return (across + down) % 2 === 0;
}

const painters = {
  mri: ({ mri }, at) => grey(mri[at]),
  pet: ({ pet }, at) => grey(pet[at]),
  fused: ({ fused }, at) => grey(fused[at]),
  overlay: ({ mri, pet }, at) => colours[256 * mri[at] + pet[at]],
  checkerboard: (slice, at) => grey((isMriField(slice, at) ? slice.mri : slice.pet)[at]),
  contour: (slice, at) => {
    const line = outlineAt(slice, at);
    return line < 0 ? grey(slice.mri[at]) : pixel(...inks[line]);
  },
};

function paint(canvas, slice) {
  canvas.width = slice.width;
  canvas.height = slice.height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(slice.width, slice.height);
  const pixels = new Uint32Array(image.data.buffer);
  const painter = painters[canvas.dataset.image];
  for (let at = 0; at < pixels.length; at++) pixels[at] = painter(slice, at);
  context.putImageData(image, 0, 0);
}

async function draw(plane) {
  const index = place[plane];
  const slice = await sliceAt(plane, index);
  if (place[plane] !== index) return; // moved on meanwhile
  for (const canvas of document.querySelectorAll(`canvas[data-plane=${plane}]`)) paint(canvas, slice);
}

function said(plane) {
  const { at, of } = scan.planes[plane];
  return `slice ${at[place[plane]]} of 0 to ${of - 1}`;
}

function showPlace(plane) {
  for (const slider of document.querySelectorAll(`[data-slider=${plane}]`)) {
    slider.min = 0;
    slider.max = scan.planes[plane].at.length - 1;
    slider.value = place[plane];
    slider.setAttribute("aria-valuetext", said(plane));
  }
  for (const words of document.querySelectorAll(`[data-said=${plane}]`)) words.textContent = said(plane);
}

function go(plane, index) {
  place[plane] = Math.max(0, Math.min(scan.planes[plane].at.length - 1, index));
  showPlace(plane);
  for (const follow of followers) follow(plane);
  return draw(plane);
}

// Goes to the slice of the page that is nearest to a slice of the volume.
function goToSlice(plane, number) {
  const { at } = scan.planes[plane];
  const apart = at.map((slice) => Math.abs(slice - number));
  return go(plane, apart.indexOf(Math.min(...apart)));
}

// Which planes the two directions of a picture lead through: to the right, and up.
const leads = {
  axial: ["sagittal", "coronal"],
  coronal: ["sagittal", "axial"],
  sagittal: ["coronal", "axial"],
};

function followClick(event) {
  const canvas = event.target.closest("canvas[data-plane]");
  if (!canvas || canvas.closest(".compared")) return;
  const box = canvas.getBoundingClientRect();
  const [across, up] = leads[canvas.dataset.plane];
  const last = (plane) => scan.planes[plane].of - 1;
  goToSlice(across, ((event.clientX - box.left) / box.width) * last(across));
  goToSlice(up, (1 - (event.clientY - box.top) / box.height) * last(up));
}

document.addEventListener("click", followClick);
document.addEventListener("input", ({ target }) => {
  if (target.dataset.slider) go(target.dataset.slider, Number(target.value));
});

async function begin() {
  const table = document.getElementById("colour-table");
  await table.decode();
  colours = new Uint32Array(pixelsOf(table).data.buffer);
  await Promise.all(Object.entries(scan.planes).map(([plane, { at }]) => go(plane, at.length >> 1)));
  document.documentElement.dataset.ready = "yes";
}
