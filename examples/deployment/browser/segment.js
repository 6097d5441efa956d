// Segment photos by the model beside this page. The photo is resized to fit the model's input, keeping its aspect ratio,
// and padded at the right and bottom; the labels of the padding are cut off.

const $ = (id) => document.getElementById(id);
const LARGEST = 4096; // side of a photo in pixels; larger ones are reduced, which browsers' canvases need

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// Bilinear resizing with half-pixel centers, as torch.nn.functional.interpolate does it.
export function resize(pixels, fromWidth, fromHeight, toWidth, toHeight) {
  const weights = (from, to) => Array.from({ length: to }, (_, i) => {
    const center = Math.min(Math.max((i + 0.5) * from / to - 0.5, 0), from - 1);
    const low = Math.floor(center);
    return [low, Math.min(low + 1, from - 1), center - low];
  });
  const rows = weights(fromHeight, toHeight), columns = weights(fromWidth, toWidth);
  const out = new Float32Array(toWidth * toHeight * 3);
  rows.forEach(([top, bottom, down], y) => columns.forEach(([left, right, across], x) => {
    for (let c = 0; c < 3; c++) {
      const at = (row, column) => pixels[(row * fromWidth + column) * 4 + c];
      const above = at(top, left) * (1 - across) + at(top, right) * across;
      const below = at(bottom, left) * (1 - across) + at(bottom, right) * across;
      out[(y * toWidth + x) * 3 + c] = above * (1 - down) + below * down;
    }
  }));
  return out;
}

export function prepare(image) {
  const scale = Math.min(width / image.width, height / image.height);
  const size = [Math.max(Math.round(image.width * scale), 1), Math.max(Math.round(image.height * scale), 1)];
  const resized = resize(image.data, image.width, image.height, ...size);
  const input = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++)
    for (let y = 0; y < size[1]; y++)
      for (let x = 0; x < size[0]; x++)
        input[(c * height + y) * width + x] = (resized[(y * size[0] + x) * 3 + c] / 255 - metadata.mean[c]) / metadata.std[c];
  return { input, size };
}

// Read a file, and report the share of it that is there.
async function download(url, report) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  const total = Number(response.headers.get("Content-Length")), chunks = [];
  let count = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(chunks).arrayBuffer());
    chunks.push(value);
    count += value.length;
    report(total ? Math.min(count / total, 1) : undefined); // a compressed file states a smaller length
  }
}

// Let the service worker see all that is loaded from here on, so that later visits need no network.
async function keepForLater() {
  const worker = navigator.serviceWorker;
  if (!worker || worker.controller) return;
  const controlled = new Promise((done) => worker.addEventListener("controllerchange", done, { once: true }));
  const registered = worker.register("offline.js").then(() => controlled);
  await Promise.race([registered.catch(() => {}), new Promise((late) => setTimeout(late, 3000))]);
}

async function load() {
  await keepForLater();
  const hasGpu = "gpu" in navigator && (await navigator.gpu.requestAdapter().catch(() => null)) !== null;
  ort = await import(hasGpu ? "./runtime/ort.webgpu.min.mjs" : "./runtime/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
  metadata = await (await fetch("metadata.json")).json();
  [, , height, width] = metadata.input_size;
  palette = metadata.palette ?? palette;
  device = hasGpu ? "WebGPU" : "WebAssembly";
  const model = await download("model.onnx", (share) => {
    if (share !== undefined) $("progress").value = share;
    say(`Loading the model ... ${share === undefined ? "" : `${Math.round(100 * share)}%`}`);
  });
  $("progress").removeAttribute("value"); // starting the model takes an unknown time
  const session = await ort.InferenceSession.create(model, { executionProviders: hasGpu ? ["webgpu", "wasm"] : ["wasm"] });
  $("progress").hidden = true;
  return session;
}

async function segment(image) {
  const session = await ready;
  const { input, size } = prepare(image);
  const start = performance.now();
  const { labels } = await session.run({ images: new ort.Tensor("float32", input, [1, 3, height, width]) });
  const all = labels.data, cropped = new Uint8Array(size[0] * size[1]);
  for (let y = 0; y < size[1]; y++)
    for (let x = 0; x < size[0]; x++) cropped[y * size[0] + x] = Number(all[y * width + x]);
  return { labels: cropped, size, seconds: (performance.now() - start) / 1000 };
}

function element(kind, name, text = "") {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function put(id, image) {
  const canvas = $(id);
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showPhoto(image) {
  put("photo", image);
  $("compare").style.setProperty("--ratio", image.width / image.height);
  $("result").hidden = false;
}

function showLabels({ labels, size, seconds }) {
  const picture = new ImageData(...size), counts = new Map();
  labels.forEach((label, i) => {
    picture.data.set([...(palette[label] ?? [0, 0, 0]), 255], 4 * i);
    counts.set(label, (counts.get(label) ?? 0) + 1);
  });
  put("overlay", picture);
  $("legend").replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const item = document.createElement("li"), share = `${(100 * count / labels.length).toFixed(1)}%`;
    const swatch = element("span", "swatch"), bar = element("span", "bar");
    swatch.style.background = bar.style.background = `rgb(${(palette[label] ?? [0, 0, 0]).join(" ")})`;
    bar.style.width = share;
    item.append(swatch, element("span", "name", metadata.label_names?.[label] ?? `class ${label}`), element("span", "share", share), bar);
    return item;
  }));
  say(`Segmented at ${size[0]} × ${size[1]} pixels in ${seconds.toFixed(2)} s by ${device}.`);
  window.result = { labels, size };
}

// Pixels of a picture or a video
function pixels(source, sourceWidth, sourceHeight) {
  const scale = Math.min(1, LARGEST / Math.max(sourceWidth, sourceHeight));
  const size = [Math.max(Math.round(sourceWidth * scale), 1), Math.max(Math.round(sourceHeight * scale), 1)];
  const context = new OffscreenCanvas(...size).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, ...size);
  return context.getImageData(0, 0, ...size);
}

let newest = 0, turn = Promise.resolve();
function open(file) {
  stopCamera();
  const number = ++newest;
  turn = turn.then(async () => { // the runtime takes one image at a time
    if (number !== newest) return;
    let bitmap;
    $("result").hidden = true; // the one before
    try {
      bitmap = await createImageBitmap(file);
    } catch (error) {
      say(`${file.name} cannot be read as an image: this browser opens JPEG, PNG, WebP and others.`, true);
      return;
    }
    const image = pixels(bitmap, bitmap.width, bitmap.height);
    put("overlay", new ImageData(1, 1));
    $("legend").replaceChildren();
    showPhoto(image);
    if ($("progress").hidden) say("Segmenting ...");
    await new Promise((painted) => setTimeout(painted, 50));
    showLabels(await segment(image));
  }).catch((error) => say(`${file.name} cannot be segmented: ${error.message}`, true));
}

let stream = null;
function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("camera").textContent = "Use the camera";
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say("The camera cannot be used: allow it for this page, which has to come from https or localhost.", true);
    return;
  }
  const mine = stream, video = document.createElement("video");
  $("camera").textContent = "Stop the camera";
  video.srcObject = stream;
  video.playsInline = true;
  await video.play();
  turn = turn.then(async () => {
    while (stream === mine) {
      const image = pixels(video, video.videoWidth, video.videoHeight), found = await segment(image);
      if (stream !== mine) return;
      showPhoto(image);
      showLabels(found);
      await new Promise(requestAnimationFrame);
    }
  }).catch((error) => say(`The camera's picture cannot be segmented: ${error.message}`, true));
}

$("file").addEventListener("change", (event) => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = ""; // or the same photo could not be chosen again
});
$("camera").addEventListener("click", () => (stream === null ? startCamera() : stopCamera()));
$("slider").addEventListener("input", (event) => $("compare").style.setProperty("--at", `${event.target.value}%`));
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  else say("Drop an image file: this is none.", true);
});

let ort, metadata, width, height, device;
let palette = Array.from({ length: 256 }, (_, i) => [(i * 67) % 256, (i * 131) % 256, (i * 29) % 256]);
const ready = load();
ready.then(() => $("result").hidden && say("Ready. Drop a photo."), (error) => {
  $("progress").hidden = true;
  say(`The model cannot be loaded: ${error.message}`, true);
});
