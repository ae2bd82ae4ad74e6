"use strict";
(async () => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const [depth, height, width] = content.shape;
  const volumes = {};

  async function pixels(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const brush = canvas.getContext("2d", { willReadFrequently: true });
    brush.drawImage(image, 0, 0);
    return brush.getImageData(0, 0, image.width, image.height);
  }

  async function volume(uri) {
    const sheet = await pixels(uri);
    const levels = new Uint8Array(depth * height * width);
    for (let z = 0, i = 0; z < depth; z++) {
      const left = (z % content.columns) * width, top = Math.floor(z / content.columns) * height;
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) levels[i++] = sheet.data[4 * ((top + y) * sheet.width + left + x)];
    }
    return levels;
  }

  for (const [name, item] of Object.entries(content.volumes)) volumes[name] = await volume(item.uri);
  const colours = (await pixels(content.colours)).data;

  // A plane's pixel (column, row) is the voxel `at` of the arrays, which are RAS+: front and top up.
  const planes = [
    { name: "axial", axis: 0, wide: width, high: height, ends: "LR",
      at: (c, r, k) => (k * height + height - 1 - r) * width + c, place: (c, r) => [null, height - 1 - r, c] },
    { name: "coronal", axis: 1, wide: width, high: depth, ends: "LR",
      at: (c, r, k) => ((depth - 1 - r) * height + k) * width + c, place: (c, r) => [depth - 1 - r, null, c] },
    { name: "sagittal", axis: 2, wide: height, high: depth, ends: "PA",
      at: (c, r, k) => ((depth - 1 - r) * height + c) * width + k, place: (c, r) => [depth - 1 - r, c, null] },
  ];
  const where = content.shape.map((length) => Math.floor(length / 2));
  const images = [...Object.keys(volumes), "overlay"];
  const titles = { overlay: "PET on MRI", all: "Side by side" };
  for (const name in content.volumes) titles[name] = content.volumes[name].title;
  let chosen = images.includes("fused") ? "fused" : "overlay", plane = planes[0];

  function colour(image, i, out, o) {
    if (image === "overlay") {
      const last = content.levels - 1, scale = last / 255;
      const pair = 4 * (Math.round(volumes.mri[i] * scale) * content.levels + Math.round(volumes.pet[i] * scale));
      for (let k = 0; k < 3; k++) out[o + k] = colours[pair + k];
    } else out.fill(volumes[image][i], o, o + 3);
    out[o + 3] = 255;
  }

  function draw(canvas, image, plane) {
    const brush = canvas.getContext("2d"), shown = brush.createImageData(plane.wide, plane.high);
    for (let r = 0, o = 0; r < plane.high; r++)
      for (let c = 0; c < plane.wide; c++, o += 4) colour(image, plane.at(c, r, where[plane.axis]), shown.data, o);
    brush.putImageData(shown, 0, 0);
  }

  // The slice of the scan's own arrays that lies there: scan.isel(z=...) is what one sees.
  const slice = (axis) =>
    Math.min(content.slices[axis] - 1, Math.floor(((where[axis] + 0.5) / content.shape[axis]) * content.slices[axis]));

  const drawn = [];
  function redraw() {
    for (const item of drawn) {
      draw(item.canvas, item.image, item.plane);
      item.slider.value = where[item.plane.axis];
      const text = `${"zyx"[item.plane.axis]} = ${slice(item.plane.axis)}`;
      item.slider.setAttribute("aria-valuetext", text);
      item.caption.textContent = `${chosen === "all" ? titles[item.image] : item.plane.name}, ${text}`;
    }
  }

  function add(image, plane) {
    const figure = document.createElement("figure"), box = document.createElement("div");
    const frame = document.createElement("div");
    const canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
    const slider = document.createElement("input");
    box.className = "box";
    [canvas.width, canvas.height] = [plane.wide, plane.high];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${titles[image]}, ${plane.name}`);
    canvas.addEventListener("click", (event) => go(event, canvas, plane));
    frame.style.aspectRatio = `${plane.wide} / ${plane.high}`;
    box.append(frame);
    frame.append(canvas, ...[...plane.ends].map((end) => Object.assign(document.createElement("b"), { textContent: end })));
    Object.assign(slider, { type: "range", min: 0, max: content.shape[plane.axis] - 1 });
    slider.setAttribute("aria-label", `${plane.name} slice of ${titles[image]}`);
    slider.addEventListener("input", () => { where[plane.axis] = +slider.value; redraw(); });
    figure.append(caption, box, slider);
    document.getElementById("planes").append(figure);
    drawn.push({ canvas, image, plane, slider, caption });
  }

  function go(event, canvas, clicked) {
    const frame = canvas.getBoundingClientRect();
    const scale = Math.min(frame.width / clicked.wide, frame.height / clicked.high);
    const column = Math.floor((event.clientX - frame.left - (frame.width - clicked.wide * scale) / 2) / scale);
    const row = Math.floor((event.clientY - frame.top - (frame.height - clicked.high * scale) / 2) / scale);
    if (column < 0 || row < 0 || column >= clicked.wide || row >= clicked.high) return;
    clicked.place(column, row).forEach((value, axis) => { if (value !== null) where[axis] = value; });
    plane = clicked;
    redraw();
  }

  function choose(name) {
    chosen = name;
    for (const button of buttons) button.setAttribute("aria-pressed", button.value === name);
    document.getElementById("planes").replaceChildren();
    drawn.length = 0;
    if (name === "all") images.forEach((image) => add(image, plane));
    else planes.forEach((each) => add(name, each));
    redraw();
  }

  const buttons = [...images, "all"].map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", value: name, textContent: titles[name] });
    button.addEventListener("click", () => choose(name));
    document.getElementById("images").append(button);
    return button;
  });
  document.addEventListener("keydown", (event) => {
    if (buttons[+event.key - 1]) buttons[+event.key - 1].click();
  });
  choose(chosen);
  document.body.dataset.ready = "yes";
})();
