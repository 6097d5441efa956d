"""Build a static web page that segments photos in the browser: nothing leaves the visitor's machine.

    pip install "onnx>=1.16" onnxruntime onnxscript
    segnext-timm export my-segnext model.onnx --size 512 --argmax --portable
    python examples/deployment/browser/build.py model.onnx site
    python -m http.server --directory site 8000

The page runs ONNX Runtime Web, by WebGPU where the browser has it, else by WebAssembly. npm downloads the runtime once.
It becomes part of the site, which needs no other server.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = "1.30.0"  # of onnxruntime-web
PAGE = ("index.html", "segment.js", "offline.js")
RUNTIME = (
    "ort.wasm.min.mjs",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
NEEDED = ("input_size", "output", "mean", "std")


class BuildError(Exception):
    """The site cannot be built; the message says why."""


def read_metadata(model: Path) -> dict:
    """Metadata of a graph of labels for a fixed size of RGB images.

    Raises:
        BuildError: If the graph is another one.
    """
    import onnx

    texts = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    missing = [key for key in NEEDED if key not in texts]
    if missing:
        raise BuildError(f"{model} has no {', '.join(missing)} in its metadata: export it with segnext-timm.")
    if texts["output"] != "labels" or texts.get("dynamic") == "true":
        raise BuildError(f"{model} must give labels for one size: export it with --argmax --portable, not --dynamic.")
    found = {key: json.loads(texts[key]) for key in ("input_size", "mean", "std")}
    found |= {key: json.loads(texts[key]) for key in ("label_names", "palette") if key in texts}
    if stated := [key for key in ("range", "bands") if key in texts]:
        raise BuildError(f"{model} states {' and '.join(stated)} of its images: the page gives photos of 8 bits.")
    if found["input_size"][:2] != [1, 3]:
        raise BuildError(f"{model} takes {found['input_size']}: the page gives one RGB image.")
    return found


def fetch_runtime(target: Path) -> None:
    """Download onnxruntime-web from npm and copy the files that the page needs.

    Raises:
        FileNotFoundError: If npm is not installed.
        BuildError: If npm cannot download the package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed: it downloads the runtime. See https://nodejs.org.")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"npm cannot download onnxruntime-web: {done.stderr.strip()[-200:]}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # a file of this version
                (target / name).write_bytes(member.read())


def build(model: Path, site: Path) -> None:
    """Write the site.

    Raises:
        FileExistsError: If the folder is not empty.
        BuildError: If the graph does not fit the page.
    """
    if site.exists() and any(site.iterdir()):
        raise FileExistsError(f"{site} is not empty: choose another folder.")
    metadata = read_metadata(model)
    (site / "runtime").mkdir(parents=True)
    fetch_runtime(site / "runtime")
    for name in PAGE:
        shutil.copy(HERE / name, site)
    shutil.copy(model, site / "model.onnx")
    (site / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]))
    except IndexError:
        sys.exit("usage: build.py MODEL.onnx SITE")
    except (OSError, ModuleNotFoundError, BuildError) as error:
        sys.exit(f"build: {error}")
