"""Picture files: colours, orientation, transparency and size, and one line for what is not a picture."""

import io

import numpy as np
import pytest
from family import random_picture
from PIL import Image

from minigemma import Error
from minigemma.inputs import BUDGETS, fit_image, grid_of, read_image

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("size", "counts"),
    [  # of a square, 4:3 and 16:9, as transformers counts them
        ((1000, 1000), (64, 121, 256, 529, 1089)),
        ((900, 1200), (63, 130, 266, 540, 1064)),
        ((1080, 1920), (66, 120, 264, 527, 1100)),
    ],
)
def test_the_count_follows_the_shape_of_the_picture_and_is_at_most_the_budget(size, counts):
    grids = [grid_of(*size, budget, 48) for budget in BUDGETS]
    assert tuple(rows * columns for rows, columns in grids) == counts


@pytest.mark.parametrize(
    ("size", "grid"), [((1, 1), (16, 16)), ((1, 5000), (1, 280)), ((5000, 1), (280, 1)), ((3, 900), (1, 280)),
                       ((512, 512), (16, 16)), ((1080, 1920), (12, 22)), ((1, 250), (1, 264))],
)  # fmt: skip
def test_small_pictures_are_enlarged_and_thin_ones_keep_a_row(size, grid):
    assert grid_of(*size, 280, 48) == grid
    assert fit_image(np.zeros((*size, 3), np.uint8), 280, 48).shape == (grid[0] * 48, grid[1] * 48, 3)


@pytest.mark.parametrize("budget", [0, 256, 280.5, "280", None, [280]])
def test_another_budget_is_refused_with_the_five_that_exist(budget):
    with pytest.raises(Error, match="70, 140, 280, 560, 1120"):
        grid_of(10, 10, budget, 48)


def test_a_picture_whose_size_fits_is_not_resampled():
    image = random_picture(768, 768)
    assert fit_image(image, 280, 48) is image
    assert not np.array_equal(fit_image(image, 140, 48)[:48, :48], image[:48, :48])


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_a_file_gives_the_colours_that_were_saved(tmp_path, format):
    options = {"lossless": True} if format == "WEBP" else {}
    image = RED if format == "GIF" else random_picture(5, 7)
    path = saved(tmp_path / "picture", Image.fromarray(image), format=format, **options)
    assert np.array_equal(read_image(path), image)
    assert np.array_equal(read_image(str(path)), image)


def test_a_path_a_pil_image_and_an_array_are_the_same_picture(tmp_path):
    image = random_picture(5, 7)
    path = saved(tmp_path / "picture.png", Image.fromarray(image))
    for source in (path, Image.fromarray(image), image):
        assert np.array_equal(read_image(source), image)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path, turn):
    image = random_picture(4, 6)
    upright = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.swapaxes(0, 1),
        6: np.rot90(image, -1), 7: image[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(image),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path / "photo.png", Image.fromarray(image), exif=exif)
    assert np.array_equal(read_image(path), upright[turn])


def test_transparency_lies_on_white_in_every_mode_that_has_it():
    clear = np.zeros((2, 2, 4), np.uint8)
    half = np.full((2, 2, 4), (0, 0, 0, 128), np.uint8)
    assert (read_image(clear) == 255).all()
    assert (read_image(half) == 127).all()
    assert (read_image(Image.fromarray(clear).convert("LA")) == 255).all()
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 0
    assert (read_image(palette) == 255).all()
    palette.info["transparency"] = 1
    assert (read_image(palette) == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "LA", "PA", "RGBa"])
def test_every_mode_of_pillow_becomes_three_colours(mode):
    assert read_image(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_grey_and_cmyk_have_the_colours_that_they_show(tmp_path):
    assert (read_image(np.full((2, 2), 77, np.uint8)) == 77).all()
    assert (read_image(np.full((2, 2, 1), 77, np.uint8)) == 77).all()
    path = saved(tmp_path / "print.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(read_image(path).astype(int) - (255, 0, 0)).max() < 5


def test_sixteen_bits_of_grey_keep_the_upper_eight(tmp_path):
    grey = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], np.uint16)
    path = saved(tmp_path / "grey.png", Image.fromarray(grey))
    assert np.array_equal(read_image(path)[..., 0], grey >> 8)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
        assert (read_image(path) == (255, 0, 0)).all(), name


def file_of(image, format="PNG"):
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


PNG = file_of(Image.fromarray(random_picture(40, 40)))
JPEG = file_of(Image.fromarray(random_picture(40, 40)), "JPEG")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a picture"), (b"hello", "not a picture"), (PNG[:200], "not a picture"),
        (JPEG[:300], "not a picture"),
        (PNG[:60] + b"\0" * 50 + PNG[110:], "not a picture"), (b"P6\n60000 60000\n255\n", "million pixels"),
        (b"P6\n12000 12000\n255\n", "million pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"), (b"P6\n0 0\n255\n", "not a picture"),
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "a hole", "a bomb", "a small bomb", "a program", "no pixels"],
)  # fmt: skip
def test_what_is_not_a_picture_gets_one_line_with_its_name(tmp_path, content, words):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(Error, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8), 7, None,
     b"bytes", "no/such/file.png", ".", Image.new("F", (2, 2)), Image.fromarray(np.full((2, 2), 70000, np.int32))],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_other_sources_are_refused_in_one_line(source):
    with pytest.raises(Error) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)
