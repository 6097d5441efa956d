"""What is refused or pointed out before anything is trained on a data folder."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segmentation import file_facts
from segmentation.checks import check_files, check_labels, check_lines, check_splits
from segmentation.label_files import NO_DATA, read_labels
from segmentation.layouts import open_split
from segmentation.recipe import DataError

HALVES = np.repeat(np.array([0, 1], np.uint8), 32)[:, None].repeat(64, 1)  # (64, 64)


def write(root, masks, classes="background\nroad\n", split="train", images=None, suffix=".png"):
    """A split of a data folder, and its files' names: images of noise that differ, and the masks given."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    rng = np.random.default_rng(len(split))
    for number, mask in enumerate(masks):
        image = images[number] if images else Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
        image.save(root / f"images/{split}/{number}.png")
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(root / f"labels/{split}/{number}{suffix}")
    return open_split("folder", root, split)


def gray_png(values, depth):
    """A gray PNG file of 1, 2, 4, 8 or 16 bits a pixel; Pillow writes no others than 1, 8 and 16."""
    height, width = values.shape
    bits = (values[..., None].astype(np.uint32) >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_gray_files_of_every_depth_hold_the_numbers_that_were_written(tmp_path, depth):
    values = np.random.default_rng(0).integers(0, 1 << min(depth, 9), (5, 7))
    (tmp_path / "a.png").write_bytes(gray_png(values, depth))
    assert np.array_equal(read_labels(tmp_path / "a.png"), values)


def with_alpha(mask):
    alpha = np.full_like(mask, 255)
    alpha[:8] = 0
    return Image.merge("LA", (Image.fromarray(mask), Image.fromarray(alpha)))


def with_palette(mask):
    image = Image.fromarray(mask, "P")
    image.putpalette([channel for index in range(256) for channel in (index, 0, 255 - index)])
    return image


FORMS = {
    "gray with alpha": (with_alpha, ".png"),
    "palette": (with_palette, ".png"),
    "palette in a GIF": (Image.fromarray, ".gif"),
    "gray in three channels": (lambda mask: Image.fromarray(mask).convert("RGB"), ".png"),
    "BMP": (Image.fromarray, ".bmp"),
    "32 bits": (lambda mask: Image.fromarray(mask.astype(np.int32)), ".tif"),
    "floating point of whole numbers": (lambda mask: Image.fromarray(mask.astype(np.float32)), ".tif"),
}


@pytest.mark.parametrize("form", FORMS)
def test_index_masks_of_every_form_are_read_alike(tmp_path, form):
    change, suffix = FORMS[form]
    change(HALVES * 7).save(tmp_path / f"a{suffix}")
    assert np.array_equal(read_labels(tmp_path / f"a{suffix}"), HALVES * 7)


@pytest.mark.parametrize(("wrong", "word"), [(0.5, "not whole"), (-1.0, "negative"), (np.nan, "not whole")])
def test_numbers_that_are_no_class_numbers_are_refused_by_name(tmp_path, wrong, word):
    mask = HALVES.astype(np.float32)
    mask[0, 0] = wrong
    Image.fromarray(mask).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif .*{word}"):
        read_labels(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_files_are_named_with_all_others_counted(tmp_path, kind, damage):
    split = write(tmp_path, [HALVES] * 5)
    for name in ("1.png", "3.png"):
        path = tmp_path / kind / "train" / name
        content = path.read_bytes()
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"<html>", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"train/1\.png cannot be read .* 2 that cannot be read \(1\.png and 3\.png\)"):
        check_files(split)


def test_a_truncated_jpeg_is_found(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    split = write(tmp_path, [HALVES])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    (tmp_path / "images/train/0.png").unlink()
    noise.save(tmp_path / "images/train/0.jpg")
    split = open_split("folder", tmp_path, "train")
    check_files(split)
    content = (tmp_path / "images/train/0.jpg").read_bytes()
    (tmp_path / "images/train/0.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"0\.jpg cannot be read"):
        check_files(split)


def test_labels_of_another_size_are_named(tmp_path):
    split = write(tmp_path, [HALVES, Image.fromarray(HALVES).resize((65, 64))])
    with pytest.raises(DataError, match=r"1\.png has 65×64 pixels .* its image 1\.png 64×64: make them equal"):
        check_files(split)


def rotated(size, orientation=6):
    """An image that is stored as (width, height), with a note that rotates it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(64, 48), (64, 64)])
def test_a_mask_beside_a_photo_that_exif_rotates_is_named_as_that(tmp_path, size):
    split = write(tmp_path, [np.resize(HALVES, (size[1], size[0]))])
    (tmp_path / "images/train/0.png").unlink()
    (tmp_path / "images/train/0.jpg").write_bytes(rotated(size))
    split = open_split("folder", tmp_path, "train")
    if size[0] == size[1]:
        assert "EXIF orientation" in "\n".join(check_files(split).warnings)
        return
    with pytest.raises(DataError, match="EXIF orientation 6") as raised:
        check_files(split)
    assert "make them equal" not in str(raised.value)


def as_jpeg(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).rotate(15).save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


SMOOTH = {
    "JPEG": as_jpeg,
    "resampled": lambda mask: Image.fromarray(mask).resize((91, 91), Image.BILINEAR).resize((64, 64), Image.BILINEAR),
}


@pytest.mark.parametrize("cause", SMOOTH)
@pytest.mark.parametrize("classes", ["0 background\n255 crack\n", "background\ncrack\n"])
def test_values_between_classes_are_named_by_their_cause(tmp_path, cause, classes):
    split = write(tmp_path, [SMOOTH[cause](HALVES * 255)] * 3, classes)
    with pytest.raises(DataError, match=r"JPEG, resampled.*--threshold 128"):
        check_labels(split)


def test_colors_between_classes_are_named_by_their_cause(tmp_path):
    colors = Image.merge("RGB", [Image.fromarray(HALVES * 255), *[Image.fromarray(HALVES * 0)] * 2])
    split = write(tmp_path, [colors.rotate(20, Image.BICUBIC)], "#000000 background\n#ff0000 road\n")
    with pytest.raises(DataError, match=r"JPEG, resampled.*--nearest"):
        check_labels(split)


def test_more_classes_than_named_are_not_taken_for_noise(tmp_path):
    split = write(tmp_path, [np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1) // 16])
    with pytest.raises(DataError, match=r"holds the labels 2, 3, but there are 2 classes \(0 to 1\)"):
        check_labels(split)


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize(
    ("values", "classes", "lines"),
    [
        ((0, 255), "background\nroad\n", "'0 background' and '255 road'"),
        ((0, 255), "0 background\n1 road\n", "'0 background' and '255 road'"),
        ((255, 1), "background\nroad\n", "'255 background' and '1 road'"),
        ((1, 2), "background\nroad\n", "'1 background' and '2 road'"),
        ((0, 128), "0 background\n255 road\n", "'0 background' and '128 road'"),
    ],
)
def test_half_of_binary_masks_is_refused_whatever_the_form_of_the_classes(tmp_path, count, values, classes, lines):
    split = write(tmp_path, [np.array(values, np.uint8)[HALVES]] * count, classes)
    with pytest.raises(DataError) as raised:
        check_labels(split)
    assert lines in str(raised.value)


def test_a_class_that_never_occurs_is_pointed_out_with_what_is_left_out(tmp_path):
    split = write(tmp_path, [np.where(HALVES, 255, np.eye(64, dtype=np.uint8)).astype(np.uint8)], "a\nb\nc\n")
    warnings = check_labels(split)
    assert "is of the class c. " in warnings and "255, 50% of the pixels, is left out" in warnings


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_are_all_left_out_are_refused(tmp_path, split):
    for name in ("train", "val"):
        write(tmp_path, [np.full_like(HALVES, 255) if name == split else HALVES] * 2, split=name)
    with pytest.raises(DataError, match=rf"labels/{split} hold no pixel of any class, but only 255"):
        check_splits(*(open_split("folder", tmp_path, name) for name in ("train", "val")))


def test_depths_that_differ_between_files_are_pointed_out(tmp_path):
    split = write(tmp_path, [HALVES, Image.fromarray(HALVES.astype(bool)), HALVES])
    assert "differ in depth, 2 of 8 bits (0.png) and 1 of 1 bit (1.png)" in check_labels(split)


def indexed(mask, *colors):
    image = Image.fromarray(mask, "P")
    image.putpalette([channel for color in colors for channel in color])
    return image


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
PADDED = (BLACK, RED, WHITE, BLACK)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([indexed(HALVES, WHITE, BLACK)], r"0\.png has a palette of grays that descend: its number 0 is shown as 255"),
        (
            [indexed(HALVES, BLACK, RED), indexed(1 - HALVES, RED, BLACK)],
            r"1\.png and 0\.png have different palettes: #ff0000 is 0 in one and 1 in the other",
        ),
        (
            [indexed(HALVES, BLACK, WHITE), indexed(HALVES * 0, WHITE)],
            r"1\.png and 0\.png have different palettes: #ffffff is 0 in one and 1 in the other",
        ),
        (
            [indexed(HALVES, BLACK, RED), indexed(HALVES, BLACK, WHITE)],
            r"1\.png and 0\.png have different palettes: 1 is #ffffff in one and #ff0000 in the other",
        ),
    ],
)
def test_palettes_that_contradict_the_numbers_are_refused(tmp_path, masks, message):
    with pytest.raises(DataError, match=message):
        check_files(write(tmp_path, masks))


@pytest.mark.parametrize(
    ("masks", "classes"),
    [
        ([indexed(HALVES, BLACK, RED), indexed(HALVES, BLACK, RED, WHITE), HALVES], "background\nroad\n"),
        ([indexed(HALVES * 2, *PADDED), indexed(HALVES * 2 + 1, *PADDED)], "a\nb\nc\nd\n"),
        ([indexed(HALVES, WHITE, BLACK)], "0 road #ffffff\n1 background #000000\n"),
        ([indexed(HALVES, WHITE, BLACK)], "#ffffff road\n#000000 background\n"),
        ([indexed(HALVES, WHITE, RED), indexed(HALVES * 255, WHITE, *[RED] * 255)], "0 sky\n1 road\n"),
    ],
)
def test_palettes_that_say_what_the_classes_say_are_no_fault(tmp_path, masks, classes):
    assert not check_files(write(tmp_path, masks, classes)).warnings


def test_a_palette_that_shows_another_class_than_the_background_in_black_is_pointed_out(tmp_path):
    split = write(tmp_path, [indexed(HALVES, RED, BLACK)] * 2)
    assert "0.png shows 'background' as #ff0000 and 'road' as black" in check_labels(split)
    assert check_labels(write(tmp_path, [indexed(HALVES, BLACK, RED)] * 2)) is None


def test_labels_of_several_bands_are_refused(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=64, height=64, count=2, dtype="uint8") as file:
        file.write(np.stack([1 - HALVES, HALVES]))
    with pytest.raises(DataError, match=r"a\.tif .*: holds 2 bands: labels have one"):
        read_labels(tmp_path / "a.tif")


def test_masks_in_a_tiff_that_pillow_does_not_open_are_no_pages(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8") as file,
    ):
        file.write(HALVES, 1)
        file.write_mask(HALVES > 0)
    assert np.array_equal(read_labels(tmp_path / "a.tif"), HALVES)


@pytest.mark.parametrize(("dtype", "nodata"), [("float32", -9999), ("int16", -1), ("float32", np.nan)])
def test_the_value_that_a_raster_has_without_labels_is_left_out(tmp_path, dtype, nodata):
    rasterio = pytest.importorskip("rasterio")
    values = HALVES.astype(dtype)
    values[:8] = nodata
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": dtype, "nodata": nodata}
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(values, 1)
    found = read_labels(tmp_path / "a.tif")
    assert (found[:8] == NO_DATA).all()
    assert np.array_equal(found[8:], HALVES[8:])


@pytest.mark.parametrize(
    ("place", "message"), [((10, 0, 500, 0, 10, 0), "upside down"), ((10, 0, 900, 0, -10, 640), "elsewhere")]
)
def test_labels_that_lie_elsewhere_than_their_image_are_refused(tmp_path, place, message):
    rasterio = pytest.importorskip("rasterio")
    split = write(tmp_path, [HALVES, HALVES])
    profile = {"driver": "GTiff", "width": 64, "height": 64, "dtype": "uint8", "crs": "EPSG:32632"}
    image = rasterio.Affine(10, 0, 500, 0, -10, 640)
    for number, labels in enumerate((rasterio.Affine(*place), image)):
        for kind, bands, transform in (("images", 3, image), ("labels", 1, labels)):
            (tmp_path / kind / "train" / f"{number}.png").unlink()
            with rasterio.open(
                tmp_path / kind / "train" / f"{number}.tif", "w", **profile, count=bands, transform=transform
            ) as file:
                file.write(np.stack([HALVES + number * (bands > 1)] * bands))
    split = open_split("folder", tmp_path, "train")
    with pytest.raises(DataError, match=rf"0\.tif is georeferenced {message}"):
        check_files(split)


@pytest.mark.parametrize("largest", [3, 255, 1000])
def test_numbers_of_a_pgm_are_those_in_the_file(tmp_path, largest):
    width = "u1" if largest < 256 else ">u2"
    (tmp_path / "a.pgm").write_bytes(f"P5 2 2 {largest}\n".encode() + np.array([0, 1, 2, 3], width).tobytes())
    assert np.array_equal(read_labels(tmp_path / "a.pgm"), [[0, 1], [2, 3]])


def test_labels_that_are_images_are_refused(tmp_path):
    split = write(tmp_path, [HALVES, HALVES], images=[Image.fromarray(HALVES)] * 2)
    with pytest.raises(DataError, match=r"0\.png is a copy of its image 0\.png: .* in all: 2 that are copies"):
        check_files(split)


def test_one_class_alone_is_refused_and_transparency_named(tmp_path):
    alpha = Image.merge("LA", (Image.fromarray(HALVES * 0), Image.fromarray(HALVES * 255)))
    with pytest.raises(DataError, match=r"are of the class 'background': there is nothing to learn.* transparency"):
        check_labels(write(tmp_path, [alpha] * 2))
    assert "no pixel" in check_files(open_split("folder", tmp_path, "train")).warnings[0]  # as for validation


def test_some_masks_of_0_and_255_beside_masks_of_classes_are_pointed_out(tmp_path):
    said = check_labels(write(tmp_path, [HALVES, HALVES, HALVES * 255]))
    assert "1 label file (2.png) hold 0 and 255 only, others 0 and 1: if 255 is 'road' there" in said


def test_masks_that_begin_with_1_are_told_all_their_values(tmp_path):
    with pytest.raises(DataError, match=r"If these are the classes' values, .*'1 pet', '2 background' and '3 border'"):
        check_files(write(tmp_path, [HALVES + 1, HALVES + 2], "pet\nbackground\nborder\n"))


def test_a_third_class_of_255_is_not_taken_for_left_out(tmp_path):
    with pytest.raises(DataError, match=r"'0 background', '128 disc' and '255 cup'"):
        check_files(write(tmp_path, [HALVES * 128, HALVES * 255], "background\ndisc\ncup\n"))


def test_three_values_of_two_classes_are_all_named_as_255_may_be_a_class(tmp_path):
    trimap = np.where(np.arange(64) < 8, 128, HALVES * 255)
    with pytest.raises(
        DataError, match=r"hold the values 0, 128 and 255, but there are 2 classes, and 255 is left out"
    ):
        check_files(write(tmp_path, [trimap]))


def test_colors_in_a_gif_are_no_numbers(tmp_path):
    Image.fromarray(HALVES * 255).save(tmp_path / "gray.gif")
    assert np.array_equal(read_labels(tmp_path / "gray.gif"), HALVES * 255)
    indexed(HALVES, BLACK, RED).save(tmp_path / "color.gif")
    with pytest.raises(DataError, match=r"color\.gif is a color image \(#000000, #ff0000\)"):
        read_labels(tmp_path / "color.gif")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS: run `git lfs pull`"),
        (b"<html>not found</html>", "it holds text"),
        (b"", "it is empty"),
        (b"II*\0 and more \0", "it is a TIFF, though its name says otherwise"),
    ],
)
def test_what_a_file_holds_in_place_of_an_image_is_said(tmp_path, content, why):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png cannot be read as an image: .*{why}"):
        read_labels(tmp_path / "a.png")


def test_labels_of_several_pages_are_refused_and_images_pointed_out(tmp_path):
    pages = {"save_all": True, "append_images": [Image.fromarray(1 - HALVES)]}
    write(tmp_path, [HALVES, HALVES])
    Image.fromarray(HALVES).save(tmp_path / "labels/train/0.tif", **pages)
    with pytest.raises(DataError, match=r"0\.tif cannot be read as an image: holds 2 pages"):
        read_labels(tmp_path / "labels/train/0.tif")
    (tmp_path / "images/train/0.png").unlink()
    Image.new("RGB", (64, 64)).save(
        tmp_path / "images/train/0.tif", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    (tmp_path / "labels/train/0.tif").unlink()
    split = open_split("folder", tmp_path, "train")
    assert "1 image (0.tif) hold several pages: the first one is taken" in check_labels(split)


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    small = Image.fromarray(HALVES).resize((32, 32))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: a smaller copy
    Image.fromarray(HALVES).save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert Image.open(tmp_path / "a.tif").n_frames == 2
    assert np.array_equal(read_labels(tmp_path / "a.tif"), HALVES)


def test_images_in_both_splits_are_found_by_content_under_any_name(tmp_path):
    train = write(tmp_path, [HALVES] * 4)
    images = [Image.open(path) for path in train.images]
    val = write(tmp_path, [HALVES] * 3, split="val", images=[images[3], images[1], images[1].rotate(90)])
    lines = "\n".join(check_lines(train, val))
    assert "Warning: 2 of 3 validation images are also in train (the first: 0.png), 2 of them with equal" in lines
    assert "2 names of images also in train, with other content" in lines


def test_an_image_twice_in_train_is_pointed_out(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    train = write(tmp_path, [HALVES] * 3, images=[image] * 3)
    val = write(tmp_path, [HALVES], split="val")
    assert "2 of 3 training images are copies of others (the first: 1.png is 0.png)" in "\n".join(
        check_lines(train, val)
    )


def test_what_a_split_holds_is_counted(tmp_path):
    report = check_files(write(tmp_path, [HALVES * 0, HALVES, np.where(HALVES, 255, 0).astype(np.uint8)]))
    assert report.pixels.tolist() == [64 * 64 * 2, 64 * 32] and report.present.tolist() == [3, 1]
    assert report.empty == 2 and report.left_out == pytest.approx(1 / 6)
    first, second = report.summary("train")
    assert first == f"train: 3 images of {tmp_path.name}, 64×64 pixels; 2 images without any object"
    assert second == "  classes by pixels (images): background 80% (3), road 20% (1), 16.7% of all pixels left out"
    assert "  the rarest class: road" in report.table("train")


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read."""
    found, read = [], file_facts.read_facts

    def counted(path, kind):
        found.append(path.name)
        return read(path, kind)

    monkeypatch.setattr(file_facts, "read_facts", counted)
    return found


def test_files_are_read_again_only_if_they_changed(tmp_path, reads):
    split = write(tmp_path, [HALVES] * 3)
    before = check_files(split, tmp_path)
    assert len(reads) == 6
    again = check_files(split, tmp_path)
    assert len(reads) == 6 and again.by_class.tolist() == before.by_class.tolist()
    Image.fromarray(HALVES * 0).save(split.labels[1])
    assert check_files(split, tmp_path).empty == 1 and reads[6:] == ["1.png"]


def test_a_damaged_or_forbidden_memory_of_what_was_read_does_no_harm(tmp_path, reads, monkeypatch):
    split = write(tmp_path, [HALVES] * 2)
    for content in ("", "[]", '{"form": 1}'):
        (tmp_path / file_facts.CACHE).write_text(content)
        check_files(split, tmp_path)
    assert len(reads) == 12
    (tmp_path / file_facts.CACHE).unlink()

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(file_facts, "replace_when_complete", refuse)
    check_files(split, tmp_path)
    assert not (tmp_path / file_facts.CACHE).exists()


def test_a_memory_moves_with_its_folder(tmp_path, reads):
    write(tmp_path / "one", [HALVES] * 2)
    check_files(open_split("folder", tmp_path / "one", "train"), tmp_path / "one")
    os.rename(tmp_path / "one", tmp_path / "two")  # noqa: PTH104
    check_files(open_split("folder", tmp_path / "two", "train"), tmp_path / "two")
    assert len(reads) == 4
