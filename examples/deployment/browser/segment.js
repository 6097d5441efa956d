// Segment photos by the model beside this page. The photo is resized to fit the model's input, keeping its aspect ratio,
// and padded at the right and bottom; the labels of the padding are cut off.

const $ = (id) => document.getElementById(id);
const hasGpu = "gpu" in navigator && (await navigator.gpu.requestAdapter().catch(() => null)) !== null;
const ort = await import(hasGpu ? "./runtime/ort.webgpu.min.mjs" : "./runtime/ort.wasm.min.mjs");
ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;

const metadata = await (await fetch("metadata.json")).json();
const [, , height, width] = metadata.input_size;
const names = metadata.label_names ?? [];
const palette = metadata.palette ?? Array.from({ length: 256 }, (_, i) => [(i * 67) % 256, (i * 131) % 256, (i * 29) % 256]);

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

let session;
async function segment(image) {
  const { input, size } = prepare(image);
  const start = performance.now();
  const { labels } = await session.run({ images: new ort.Tensor("float32", input, [1, 3, height, width]) });
  const all = labels.data, cropped = new Uint8Array(size[0] * size[1]);
  for (let y = 0; y < size[1]; y++)
    for (let x = 0; x < size[0]; x++) cropped[y * size[0] + x] = Number(all[y * width + x]);
  return { labels: cropped, size, seconds: (performance.now() - start) / 1000 };
}

function draw({ labels, size, seconds }) {
  const canvas = $("overlay"), picture = new ImageData(...size), counts = new Map();
  [canvas.width, canvas.height] = size;
  labels.forEach((label, i) => {
    picture.data.set([...(palette[label] ?? [0, 0, 0]), 255], 4 * i);
    counts.set(label, (counts.get(label) ?? 0) + 1);
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  $("legend").replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const item = document.createElement("li"), swatch = document.createElement("span");
    swatch.style.background = `rgb(${(palette[label] ?? [0, 0, 0]).join(" ")})`;
    item.append(swatch, `${names[label] ?? `class ${label}`} ${(100 * count / labels.length).toFixed(1)}%`);
    return item;
  }));
  $("status").textContent = `Segmented in ${seconds.toFixed(2)} s by ${hasGpu ? "WebGPU" : "WebAssembly"}.`;
  window.result = { labels, size };
}

async function show(source, sourceWidth, sourceHeight) {
  const canvas = $("photo");
  [canvas.width, canvas.height] = [sourceWidth, sourceHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  $("stage").style.display = "block";
  $("status").textContent = "Segmenting ...";
  draw(await segment(context.getImageData(0, 0, sourceWidth, sourceHeight)));
}

async function open(file) {
  try {
    const bitmap = await createImageBitmap(file);
    await show(bitmap, bitmap.width, bitmap.height);
  } catch (error) {
    $("status").textContent = `${file.name} cannot be read as an image.`;
  }
}

$("file").addEventListener("change", (event) => event.target.files[0] && open(event.target.files[0]));
$("slider").addEventListener("input", (event) => {
  $("overlay").style.clipPath = `inset(0 ${100 - event.target.value}% 0 0)`;
});
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
});

let stream = null;
$("camera").addEventListener("click", async () => {
  if (stream !== null) {
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
    $("camera").textContent = "Use the camera";
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    $("status").textContent = "The camera cannot be used: allow it for this page.";
    return;
  }
  $("camera").textContent = "Stop the camera";
  const video = document.createElement("video");
  video.srcObject = stream;
  await video.play();
  while (stream !== null) {
    await show(video, video.videoWidth, video.videoHeight);
    await new Promise(requestAnimationFrame);
  }
});

try {
  const providers = hasGpu ? ["webgpu", "wasm"] : ["wasm"];
  session = await ort.InferenceSession.create("model.onnx", { executionProviders: providers });
  $("status").textContent = "Ready. Drop a photo.";
} catch (error) {
  $("status").textContent = `The model cannot be loaded: ${error.message}`;
}
