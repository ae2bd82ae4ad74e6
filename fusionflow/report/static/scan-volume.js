"use strict";
// NiiVue, which is unpacked when the part of the page with the volumes is opened.

const viewer = Object.fromEntries(["volume", "volume-image", "volume-pet", "volume-view", "volume-said", "niivue"]
  .map((name) => [name, document.getElementById(name)]));
const text = (id) => document.getElementById(id).textContent;

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function loadProgram() {
  const script = document.createElement("script");
  script.textContent = await unpacked(text("niivue-program"));
  document.head.append(script);
}

function imageOf(name, colormap, opacity) {
  return niivue.NVImage.loadFromBase64({
    base64: text(`volume-${name}-data`), name: `${name}.nii.gz`, colormap, opacity, cal_min: 0, cal_max: 1,
  });
}

async function showVolumes(shown) {
  const under = viewer["volume-image"].value;
  const over = Number(viewer["volume-pet"].value) / 100;
  for (const volume of [...shown.volumes]) shown.removeVolume(volume);
  shown.addVolume(await imageOf(under, "gray", 1));
  shown.addVolume(await imageOf("pet", "hot", over));
}

function showView(shown) {
  const kinds = {
    multiplanar: shown.sliceTypeMultiplanar, render: shown.sliceTypeRender, axial: shown.sliceTypeAxial,
    coronal: shown.sliceTypeCoronal, sagittal: shown.sliceTypeSagittal,
  };
  shown.setSliceType(kinds[viewer["volume-view"].value]);
}

async function openViewer() {
  const say = (words) => { viewer["volume-said"].textContent = words; };
  if (!document.createElement("canvas").getContext("webgl2")) {
    return say("This browser has no WebGL 2, which the 3-D viewer needs. Turn on hardware acceleration, or open the NIfTI files in another viewer.");
  }
  say("Unpacking …");
  await loadProgram();
  const shown = new niivue.Niivue({
    backColor: [0, 0, 0, 1], show3Dcrosshair: true, isOrientationTextVisible: true,
    dragAndDropEnabled: false, isRadiologicalConvention: false, logLevel: "error",
  });
  await shown.attachToCanvas(viewer.niivue);
  shown.setRadiologicalConvention(false);
  shown.opts.crosshairWidth = 0.5;
  shown.opts.multiplanarShowRender = niivue.SHOW_RENDER.ALWAYS;
  await showVolumes(shown);
  showView(shown);
  viewer["volume-image"].addEventListener("change", () => showVolumes(shown));
  viewer["volume-pet"].addEventListener("input", () => shown.setOpacity(1, Number(viewer["volume-pet"].value) / 100));
  viewer["volume-view"].addEventListener("change", () => showView(shown));
  say("");
  viewer.volume.dataset.ready = "yes";
  viewer.volume.viewer = shown;
}

viewer.volume.addEventListener("toggle", () => openViewer().catch((error) => {
  viewer["volume-said"].textContent = `The 3-D viewer could not be opened: ${error.message ?? error}`;
  viewer.volume.dataset.ready = "failed";
}), { once: true });
