"""Load serve_litserve.py on loopback by 1, 4 and 16 clients, and compare every answer with predict's labels.

    pip install ".[serve]" requests
    python tests/measure/serving_load.py                    # SegNeXt-T with random weights
    python tests/measure/serving_load.py my-segnext --size 512 --requests 200

Every tenth upload is broken, and has to be answered 422. Clients run in threads of this process, on the same machine.
"""

import argparse
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
from benchmarking.ceilings import machine
from segmentation import scenes
from segnext_timm import SegNeXt, load_segmenter, predict

CLIENTS, IMAGES = (1, 4, 16), 8


def serve(model: str, options: list[str]) -> tuple[subprocess.Popen, str]:
    """Start the server on a free port of loopback, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "examples/tools/serve_litserve.py"
    process, url = subprocess.Popen([sys.executable, script, model, "--port", str(port), *options]), ""
    for _ in range(240):
        time.sleep(0.5)
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                url = f"http://127.0.0.1:{port}/predict"
                break
        except requests.ConnectionError:
            continue
    return process, url


def load(url: str, clients: int, count: int, uploads: list[bytes], expected: list[np.ndarray]) -> str:
    """Send requests by some clients: a row of the table."""
    local, broken = threading.local(), b"broken" * 1000

    def ask(index: int) -> tuple[float, bool]:
        local.session = session = getattr(local, "session", None) or requests.Session()
        bad, number = index % 10 == 9, index % len(uploads)
        start = time.perf_counter()
        answer = session.post(url, files={"image": broken if bad else uploads[number]}, timeout=120)
        seconds = time.perf_counter() - start
        if bad:
            return seconds, answer.status_code == 422
        right = answer.status_code == 200
        return seconds, right and np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected[number])

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))  # connections are opened
        start = time.perf_counter()
        answers = list(pool.map(ask, range(count)))
        total = time.perf_counter() - start
    good = [seconds for index, (seconds, _) in enumerate(answers) if index % 10 != 9]
    p50, p99 = (1e3 * float(np.percentile(good, q)) for q in (50, 99))
    right = sum(right for _, right in answers)
    return f"| {clients} | {count} | {right} | {len(good) / total:.1f} | {p50:.0f} | {p99:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="model folder [default: SegNeXt-T, 19 classes, random weights]")
    parser.add_argument("--size", type=int, default=512, help="side of the images [default: 512]")
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients [default: 200]")
    args, options = parser.parse_known_args()  # others are the server's
    with tempfile.TemporaryDirectory() as work:
        model = args.model or f"{work}/model"
        if not args.model:
            torch.manual_seed(0)
            cfg = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
            SegNeXt("tu-mscan_t", encoder_weights=None, classes=19, pretrained_cfg=cfg).save_pretrained(model)
        uploads = []
        for index in range(IMAGES):
            file = io.BytesIO()
            Image.fromarray(scenes.draw(0, index, args.size)[0]).save(file, "jpeg", quality=90)
            uploads.append(file.getvalue())
        loaded = load_segmenter(model)
        expected = [predict(loaded, Image.open(io.BytesIO(upload))) for upload in uploads]
        host = ", ".join(f"{key} {value}" for key, value in machine("cpu", (0, 0)).items() if value)
        print(f"{host}; {os.cpu_count()} cores; {args.model or 'SegNeXt-T'}, {args.size}², {' '.join(options)}")
        process, url = serve(model, options)
        try:
            print("| clients | requests | right answers | images per second | p50, ms | p99, ms |")
            print("|---|---|---|---|---|---|")
            for clients in CLIENTS:
                print(load(url, clients, args.requests, uploads, expected), flush=True)
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
