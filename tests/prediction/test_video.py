"""Videos: every frame is predicted as an image is, and what is written keeps its times, and its place."""

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from command import last_line, run, save_segmenter
from segnext_timm import fuse, overlay, predict
from segnext_timm.prediction.files import find_images, outputs, predict_file, predict_files

av = pytest.importorskip("av")
pytestmark = pytest.mark.slow  # PyAV is not of the extra `test`

TIMES = (0, 40, 50, 130, 200, 370)  # milliseconds
TURNS = {
    (1, 0, 0, 1): lambda image: image,
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),  # as phones write it that are held upright
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder."""
    return save_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return smp.from_pretrained(folder).eval()


def draw(file, size=(48, 80), times=TIMES, codec="libx264", sound="aac", unit=Fraction(1, 1000), aspect=1, **options):
    """Draw a video of a square that moves over colors; `aspect` is the width of its pixels over their height."""
    with av.open(str(file), "w", container_options=options) as made:
        stream = made.add_stream(codec, rate=25, width=size[1], height=size[0])
        stream.codec_context.time_base, stream.codec_context.sample_aspect_ratio = unit, aspect
        tone = sound and made.add_stream(sound, rate=48000, layout="mono")
        for number, milliseconds in enumerate(times):
            rows, columns = np.mgrid[: size[0], : size[1]]
            image = np.stack([columns * 3, rows * 4, rows * 0 + 40 * number], -1).clip(0, 255).astype(np.uint8)
            image[10:30, 9 * number : 9 * number + 20] = (250, 20, 20)
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = round(Fraction(milliseconds, 1000) / unit), unit
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None) if times else [])
        for start in range(0, 24 * 1024 if sound else 0, 1024):
            wave = np.sin(np.arange(start, start + 1024) / 20)[None] * 0.3
            wave = wave.astype(np.float32) if tone.format.name == "fltp" else (wave * 32767).astype(np.int16)
            heard = av.AudioFrame.from_ndarray(wave, tone.format.name, "mono")
            heard.sample_rate, heard.pts, heard.time_base = 48000, start, Fraction(1, 48000)
            made.mux(tone.encode(heard))
        if sound:
            made.mux(tone.encode(None))
    return file


def turn(file, matrix):
    """Write a display matrix to the head of an MP4's track."""
    content = bytearray(file.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = matrix
    content[place : place + 36] = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    file.write_bytes(content)
    return file


def frames(file):
    """Frames and their times in seconds."""
    with av.open(str(file)) as source:
        return [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in source.decode(video=0)]


def test_every_frame_is_predicted_at_its_own_time(folder, tmp_path):
    video = draw(tmp_path / "street.mp4")
    done = run("predict", folder, video, "-o", tmp_path / "out", "--frame_labels", "--areas", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert last_line(done) == f"Predicted 1 of 1 files to {tmp_path / 'out'}."
    names = {"areas.json", "street_labels.npz", "street_overlay.jpg", "street_overlay.mp4"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    source, drawn = frames(video), frames(tmp_path / "out" / "street_overlay.mp4")
    assert (
        [when for _, when in drawn] == [when for _, when in source] == [milliseconds / 1000 for milliseconds in TIMES]
    )
    stored = np.load(tmp_path / "out" / "street_labels.npz")
    assert [*stored] == [*(f"{number:06d}" for number in range(6)), "seconds"]
    assert stored["seconds"] == pytest.approx([when for _, when in source])
    fused = fuse(smp.from_pretrained(folder).eval()).to(memory_format=torch.channels_last)
    labels = [predict(fused, image) for image, _ in source]
    for number, ((image, _), (picture, _)) in enumerate(zip(source, drawn)):
        assert np.array_equal(stored[f"{number:06d}"], labels[number])
        expected = np.asarray(overlay(image, labels[number], legend=False), np.int16)
        assert np.abs(picture - expected).mean() < 6  # colors are stored at half the size
    (entry,) = json.loads((tmp_path / "out" / "areas.json").read_text())["images"]
    assert (entry["height"], entry["width"], entry["frames"]) == (48, 80, 6)
    counted = {area["label"]: area["pixels"] for area in entry["classes"]}
    assert counted == {label: (np.stack(labels) == label).sum() for label in np.unique(labels)}
    with Image.open(tmp_path / "out" / "street_overlay.jpg") as still:
        assert still.height > 48


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_upright(model, tmp_path, matrix):
    video = turn(draw(tmp_path / "a.mp4", times=(0, 40), sound=None, aspect=Fraction(4, 3)), matrix)
    areas = predict_file(model, video, tmp_path / "out" / "a", frame_labels=True)
    source, upright = frames(video), TURNS[matrix]
    stored = np.load(tmp_path / "out" / "a_labels.npz")
    for number, (image, _) in enumerate(source):
        assert np.array_equal(stored[f"{number:06d}"], predict(model, upright(image)))
    size = upright(source[0][0]).shape
    assert (areas["height"], areas["width"]) == size[:2]
    assert [image.shape for image, _ in frames(tmp_path / "out" / "a_overlay.mp4")] == [size, size]
    with av.open(str(tmp_path / "out" / "a_overlay.mp4")) as drawn:
        turned = size[0] > size[1]
        assert drawn.streams.video[0].sample_aspect_ratio == (Fraction(3, 4) if turned else Fraction(4, 3))


def test_sides_are_even_but_labels_have_the_frames_size(model, tmp_path):
    video = draw(tmp_path / "a.webm", (47, 79), (0, 40), "libvpx-vp9", None)
    predict_file(model, video, tmp_path / "out" / "a", frame_labels=True)
    assert frames(tmp_path / "out" / "a_overlay.mp4")[0][0].shape == (48, 80, 3)
    assert np.load(tmp_path / "out" / "a_labels.npz")["000000"].shape == (47, 79)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.avi"])
def test_times_count_from_the_begin_of_the_file(model, tmp_path, name):
    # x264 stores frames out of order, whose times AVI does not state
    video = draw(tmp_path / name, times=range(0, 400, 40), sound="mp2", unit=Fraction(1, 25))
    predict_file(model, video, tmp_path / "out" / "a")
    times = np.array([when for _, when in frames(tmp_path / "out" / "a_overlay.mp4")])
    assert np.diff(times) == pytest.approx(0.04, abs=0.002)
    assert 0 <= times[0] < 0.2


def test_videos_that_are_none_are_told_in_one_line_and_leave_nothing(folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with av.open(str(tmp_path / "sound.mp4"), "w") as made:
        tone = made.add_stream("aac", rate=48000, layout="mono")
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        heard.sample_rate = 48000
        made.mux([*tone.encode(heard), *tone.encode(None)])
    content = draw(tmp_path / "a.avi", times=(0, 40), codec="mpeg4", sound=None, unit=Fraction(1, 25)).read_bytes()
    (tmp_path / "unknown.avi").write_bytes(content.replace(b"FMP4", b"QQQQ"))
    draw(tmp_path / "none.mkv", times=(), sound="aac")
    told = {
        "text.mp4": "cannot be read as a video: Invalid data found when processing input.",
        "sound.mp4": "has no video stream that PyAV decodes.",
        "unknown.avi": "has no video stream that PyAV decodes.",
        "none.mkv": "has no frame that PyAV decodes.",
    }
    done = run("predict", folder, *(tmp_path / name for name in told), "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-4:] == [f"{tmp_path / name}: {reason}" for name, reason in told.items()]
    assert not [*(tmp_path / "out").iterdir()]


def test_of_a_damaged_video_the_frames_that_can_be_read_are_kept(folder, tmp_path):
    content = draw(tmp_path / "a.mp4", times=range(0, 4000, 200), sound=None, movflags="faststart").read_bytes()
    pictures = content.index(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(content[: (pictures + len(content)) // 2])
    done = run("predict", folder, tmp_path / "cut.mp4", "-o", tmp_path / "out")
    assert done.exit_code == 1
    kept = len(frames(tmp_path / "out" / "cut_overlay.mp4"))
    assert 0 < kept < 20
    assert last_line(done).startswith(f"{tmp_path / 'cut.mp4'}: ")
    ends = f"it ends after {kept * 0.2:.1f} of 3.8 seconds"
    assert last_line(done).endswith(f"{ends}; {kept} frames are in {tmp_path / 'out' / 'cut_overlay.mp4'}.")
    assert [*outputs(tmp_path / "out" / "cut")] == ["video"]


def test_an_interrupt_keeps_the_frames_that_are_done_and_resume_predicts_the_video_again(folder, model, tmp_path):
    places = find_images([draw(tmp_path / "a.mp4")], tmp_path / "out")

    def interrupt(file, share):
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"a\.mp4: 4 frames are in .*a_overlay\.mp4\. Labels of 0 of 1 files"):
        predict_files(model, places, tmp_path / "out", areas=True, report=interrupt, frame_labels=True)
    assert len(frames(tmp_path / "out" / "a_overlay.mp4")) == 4
    assert [*np.load(tmp_path / "out" / "a_labels.npz")] == [*(f"{number:06d}" for number in range(4)), "seconds"]
    command = ("predict", folder, tmp_path / "a.mp4", "-o", tmp_path / "out", "--resume")
    assert "Predicted 1 of 1 files" in run(*command).output
    assert not (tmp_path / "out" / "a_labels.npz").exists()  # of the earlier prediction
    assert len(frames(tmp_path / "out" / "a_overlay.mp4")) == 6
    assert "Predicted 0 of 1 files" in run(*command).output
    assert "was predicted with" in run(*command, "--flip").output
    assert "Predicted 1 of 1 files" in run(*command, "--frame_labels").output
    assert {*outputs(tmp_path / "out" / "a")} == {"overlay", "video", "frame_labels"}


def test_ctrl_c_ends_with_130_and_says_what_is_kept(folder, tmp_path):
    video = draw(tmp_path / "a.mp4", times=range(0, 40 * 400, 40), sound=None)
    command = [sys.executable, "-m", "segnext_timm", "predict", folder, video, "-o", tmp_path / "out"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background processes ignore it
    running = subprocess.Popen([*command, "--frame_labels"], stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not [f for f in tmp_path.glob("out/.new.*/a_labels.npz") if f.stat().st_size > 1000]:
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate()
    assert running.returncode == 130
    kept = len(np.load(tmp_path / "out" / "a_labels.npz")["seconds"])
    out = tmp_path / "out"
    frames_kept = f"Interrupted. {video}: {kept} frames are in {out / 'a_overlay.mp4'}. "
    assert stderr.splitlines()[-1].startswith(f"{frames_kept}Labels of 0 of 1 files are in {out}; run the same command")
    assert 0 < kept <= len(frames(out / "a_overlay.mp4")) < 400


def test_videos_of_an_earlier_prediction_are_no_videos_to_predict(folder, tmp_path):
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.mp4")
    run("predict", folder, tmp_path / "in", "-o", tmp_path / "in" / "out")
    assert [*find_images([tmp_path / "in"], tmp_path / "again")] == [tmp_path / "in" / "a.mp4"]
    draw(tmp_path / "in" / "a.mov")
    places = find_images([tmp_path / "in"], tmp_path / "again")
    assert {place.name for place in places.values()} == {"a.mov", "a.mp4"}
