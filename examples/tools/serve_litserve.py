"""Serve a model over HTTP with LitServe: an image in, labels as PNG or the areas of the classes as JSON out.

    pip install "segnext-timm[serve]"
    python examples/tools/serve_litserve.py my-segnext --port 8000
    curl -F image=@street.jpg localhost:8000/predict -o labels.png
    curl -F image=@street.jpg "localhost:8000/predict?answer=areas"

The labels are those of `segnext-timm predict`. What is wrong with an upload is answered with status 4xx and one line.
"""

import argparse
import io
import multiprocessing
import signal
import sys
from types import FrameType
from typing import Annotated, Literal

try:
    import litserve
    from fastapi import Depends, UploadFile
    from fastapi.responses import JSONResponse, Response
except ModuleNotFoundError as error:
    sys.exit(f'serve_litserve.py: {error.name} is not installed: pip install "segnext-timm[serve]"')
import numpy as np
import torch
from PIL import Image

import segnext_timm
from segnext_timm.errors import ImageError, SegNeXtError
from segnext_timm.models.model_info import ModelInfo

BATCHED = 1 << 19  # pixels: larger images fill a GPU alone, and `predict` may cut them into windows
WAIT = 0.005  # seconds for other requests of a batch


async def read_upload(image: UploadFile, answer: Literal["labels", "areas"] = "labels") -> tuple[bytes, str]:
    return await image.read(), answer


class Server(litserve.LitAPI):
    """Labels uploads; those that wait together, up to `batch`, are taken at once."""

    def __init__(self, name: str, batch: int, max_pixels: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=WAIT)
        self.name, self.max_pixels = name, max_pixels

    def setup(self, device: str) -> None:
        model = segnext_timm.fuse(segnext_timm.load_segmenter(self.name), inplace=True)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.info = ModelInfo(model)

    def decode_request(
        self, request: Annotated[tuple, Depends(read_upload)], context: dict
    ) -> torch.Tensor | SegNeXtError:
        """Read an image; an error is returned, since one that is raised would fail the whole batch."""
        content, context["answer"] = request
        try:
            try:
                image = Image.open(io.BytesIO(content))
                pixels = image.width * image.height
                if pixels <= self.max_pixels:
                    image.load()
            except Exception as error:  # decoders raise many types
                reason = type(error).__name__
                raise ImageError(f"The upload is no whole image ({reason}): send a JPEG, PNG or the like.") from None
            if pixels > self.max_pixels:
                raise ImageError(f"The image has {pixels} pixels; at most {self.max_pixels} are allowed.")
            return segnext_timm.read_image(image, self.info.in_channels, self.info.value_range, self.info.bands)
        except SegNeXtError as error:
            return error

    def batch(self, inputs: list) -> list:
        return inputs  # of several sizes

    def predict(self, images: list | torch.Tensor | SegNeXtError) -> list | np.ndarray | SegNeXtError:
        if not isinstance(images, list):  # batches of one
            return self.predict([images])[0]
        outputs, groups = list(images), {}
        for index, image in enumerate(images):
            if isinstance(image, torch.Tensor):
                groups.setdefault(image.shape if self.batchable(image) else index, []).append(index)
        for group in groups.values():
            labels = self.label([images[index] for index in group])
            for index, one in zip(group, labels):
                outputs[index] = one
        return outputs

    def batchable(self, image: torch.Tensor) -> bool:
        """Whether an image runs whole and at its own size, on an accelerator: on a CPU, images run in turn."""
        short, long = sorted(image.shape[1:])
        fit = sorted(self.info.fit_in or (short, long))
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return not on_cpu and short * long <= BATCHED and min(fit[0] / short, fit[1] / long) == 1

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        """Label images of one size: side by side, each of them a window, in one batch."""
        if len(images) == 1:
            return [segnext_timm.predict(self.model, images[0], scaled=True)]
        size = tuple(images[0].shape[1:])
        options = {"mode": "slide", "window": size, "stride": size, "batch": len(images), "fit_in": None}
        labels = segnext_timm.predict(self.model, torch.cat(images, 2), scaled=True, **options)
        return np.split(labels, len(images), 1)

    def encode_response(self, output: np.ndarray | SegNeXtError, context: dict) -> Response:
        if isinstance(output, SegNeXtError):
            return JSONResponse({"detail": " ".join(str(output).split())}, status_code=422)
        if context["answer"] == "areas":
            return JSONResponse(segnext_timm.class_areas(output, self.info.label_names))
        file = io.BytesIO()
        picture = Image.fromarray(output)
        if picture.mode == "L":  # more than 256 classes have no palette
            picture.putpalette([value for color in self.info.palette for value in color])
        picture.save(file, "png")
        return Response(file.getvalue(), media_type="image/png")


def stop(number: int, frame: FrameType | None) -> None:
    """End one of LitServe's processes quietly; interrupt the first process: LitServe then ends the others."""
    if multiprocessing.parent_process():
        sys.exit()
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="published name, model folder, or repository on the Hub")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines [default: 127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, help="[default: 8000]")
    parser.add_argument("--batch", type=int, default=1, help="images that are taken at once, for GPUs [default: 1]")
    parser.add_argument("--workers", type=int, default=1, help="processes per device [default: 1]")
    parser.add_argument("--max_pixels", type=int, default=1 << 24, help="of an image [default: 16,777,216]")
    parser.add_argument("--max_bytes", type=int, default=1 << 26, help="of an upload [default: 67,108,864]")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        segnext_timm.load_segmenter(args.model)  # before the processes start: downloads once, and a mistake is told
        server = litserve.LitServer(
            Server(args.model, args.batch, args.max_pixels),
            workers_per_device=args.workers,
            max_payload_size=args.max_bytes,
        )
        server.run(host=args.host, port=args.port, generate_client_file=False, log_level="warning")
    except (SegNeXtError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:  # before LitServe's processes are ready; later, it returns
        for process in multiprocessing.active_children():
            process.terminate()
    print(f"{parser.prog}: stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
