"""Predict videos frame by frame, and draw the labels over them, by PyAV, which :func:`.files.check_video` imports."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn as nn

from ..errors import ImageError
from ..models.model_info import ModelInfo
from .drawing import add_legend, list_areas, overlay, save_overlay
from .pipeline import predict

OVERLAY, FRAME_LABELS = "_overlay.mp4", "_labels.npz"
CODEC, _QUALITY = "libx264", {"crf": "18", "bf": "0"}  # with B-frames, MP4's durations would be inexact
_BT709 = 1  # number of a color space, and of the range of values that goes with it, in FFmpeg


def _read(av: Any, source: Any, faults: list[str]) -> Iterator[Any]:
    """Yield frames of the first video stream, and packets of other streams; say in `faults` what cannot be read."""
    try:
        for packet in source.demux():
            try:
                yield from packet.decode() if packet.stream.index == source.streams.video[0].index else [packet]
            except av.error.InvalidDataError:
                faults.append("damaged frames are left out")
    except av.error.FFmpegError as error:
        faults.append(f"its end cannot be read, {error.strerror}")


def _upright(frame: Any) -> tuple[np.ndarray, bool]:
    """Convert a frame to colors (H, W, 3), by the nearest quarter turn and the mirroring of its display matrix.

    Returns also whether rows became columns.
    """
    pixels, matrix, turned = frame.to_ndarray(format="rgb24"), frame.side_data.get("DISPLAYMATRIX"), False
    if matrix is not None:  # (x, y) becomes (a x + c y, b x + d y)
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if turned := abs(b) > abs(a):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels), turned


def predict_video(
    av: Any, model: nn.Module, file: Path, out: Path, tags: dict[str, str], frame_labels: bool, **options: Any
) -> tuple[dict[str, Any], BaseException | None]:
    """Predict a video; write files that begin with `out`. Return areas, and the error or Ctrl-C that ended it early."""
    info, faults, seconds = ModelInfo(model), list[str](), list[float]()
    counts, last, end, progress = np.zeros(max(info.num_classes, 2), np.int64), -1, 0.0, options.pop("progress", None)
    ended: BaseException | None = None
    with ExitStack() as stack:
        try:
            source = stack.enter_context(av.open(str(file), metadata_errors="replace"))
        except av.error.FFmpegError as error:
            raise ImageError(f"{file} cannot be read as a video: {error.strerror}.") from None
        video = next(iter(source.streams.video), None)
        if video is None or video.codec_context is None:
            raise ImageError(f"{file} has no video stream that PyAV decodes.")
        start, length = max(source.start_time or 0, 0) / 1e6, (source.duration or 0) / 1e6
        made = av.open(f"{out}{OVERLAY}", "w", container_options={"output_ts_offset": f"{-start:f}"})
        stack.enter_context(made).metadata.update(tags)
        stream = made.add_stream(CODEC, rate=video.average_rate or 25, options=_QUALITY)
        coder = stream.codec_context
        coder.time_base, aspect = video.time_base, video.sample_aspect_ratio or Fraction(1)
        coder.colorspace = coder.color_primaries = coder.color_trc = coder.color_range = _BT709
        arrays = frame_labels and stack.enter_context(zipfile.ZipFile(f"{out}{FRAME_LABELS}", "w", 8))
        try:
            for part in _read(av, source, faults):
                end = max(end, float(((part.pts or 0) + (part.duration or 0)) * (part.time_base or 0)) - start)
                if isinstance(part, av.Packet):  # of sound, which may be longer
                    continue
                pixels, turned = _upright(part)
                labels = predict(model, pixels, **options)
                picture = overlay(pixels, labels, palette=info.palette, legend=False)
                if not seconds:
                    first, (height, width) = picture, labels.shape
                    stream.height, stream.width = height + height % 2, width + width % 2
                    coder.sample_aspect_ratio = 1 / aspect if turned else aspect
                odd = [(0, side % 2) for side in labels.shape]  # repeat edges: YUV 4:2:0 needs even sides
                drawn = av.VideoFrame.from_ndarray(np.pad(np.asarray(picture), [*odd, (0, 0)], "edge"))
                drawn = drawn.reformat(format="yuv420p", dst_colorspace=_BT709)
                pts = part.dts if source.format.name == "avi" else part.pts  # AVI states the order of decoding only
                last = max(last + 1, last + (part.duration or 1) if pts is None else pts)
                drawn.pts, drawn.time_base, drawn.duration = last, video.time_base, part.duration
                found = np.bincount(labels.ravel(), minlength=len(counts))
                if arrays:
                    with arrays.open(f"{len(seconds):06d}.npy", "w") as entry:
                        np.lib.format.write_array(entry, labels)
                made.mux(stream.encode(drawn))
                counts += found
                seconds.append(float(last * video.time_base) - start)
                if progress and length:
                    progress(min(end / length, 1))
        except KeyboardInterrupt as interrupt:
            ended = interrupt
        if not seconds:
            raise ended or ImageError(f"{file} has no frame that PyAV decodes.")
        made.mux(stream.encode(None))
        if arrays:
            del arrays.filelist[len(seconds) :]  # a frame that Ctrl-C cut short
            with arrays.open("seconds.npy", "w") as entry:
                np.lib.format.write_array(entry, np.array(seconds))
    if length - end > 1:  # seconds; less is rounding
        faults.append(f"it ends after {end:.1f} of {length:.1f} seconds")
    if faults and not ended:
        ended = ImageError("".join(f"{fault}; " for fault in dict.fromkeys(faults)))
    classes = list_areas(counts, info.label_names)
    if not ended:
        save_overlay(add_legend(first, classes, info.palette), Path(f"{out}_overlay.jpg"))
    return {"height": height, "width": width, "frames": len(seconds), "classes": classes}, ended
