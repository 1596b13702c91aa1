"""Images of every kind become upright RGB or are refused; sound JPEG files keep their bytes."""

import ctypes
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines import images
from pipelines.errors import UserError
from pipelines.images import ImageError, PackingRecipe, decode, prepare

KEEP = PackingRecipe(max_resolution=None, quality=None, raw_pixels=0, max_side=65_500)


def has_turbojpeg():
    try:
        return bool(ctypes.CDLL(images.TURBOJPEG))
    except OSError:
        return False


needs_turbojpeg = pytest.mark.skipif(not has_turbojpeg(), reason="needs libturbojpeg.so.0")
RNG = np.random.default_rng(0)


def picture(height=60, width=90) -> Image.Image:
    """Smooth, so that JPEG changes it little, and different at each corner."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * x / width, 255 * y / height, 128 + 0 * x]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image, _ = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def noise_jpeg() -> bytes:
    """Hard to compress, so that the middle of the file is in the middle of the image."""
    return encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "GIF"])
def test_rgb_is_exact(format):
    image = picture(5, 7) if format != "GIF" else picture(5, 7).quantize(64).convert("RGB")
    assert (pixels(encoded(image, format)) == np.asarray(image)).all()


def test_gray_becomes_rgb():
    gray = picture().convert("L")
    result = pixels(encoded(gray))
    assert (result == np.asarray(gray)[..., None]).all()


def test_one_bit_becomes_black_and_white():
    bits = Image.fromarray(np.eye(8, dtype=bool))
    assert (pixels(encoded(bits)) == 255 * np.eye(8, dtype=int)[..., None]).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 1000, 32768, 65535]], np.uint16)
    result = pixels(encoded(Image.fromarray(values), format))
    assert (result == np.round(values / 257).astype(int)[..., None]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bit_pixels_are_refused(dtype):
    with pytest.raises(ImageError, match="no fixed range"):
        decode(encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF"))


def test_cmyk_becomes_rgb():
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert not decode(data)[1]
    assert np.abs(pixels(data) - np.asarray(picture())).mean() < 4


def test_palette_becomes_rgb():
    image = picture().quantize(32)
    assert (pixels(encoded(image)) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 1, 1), fill=(80, 80, 80, 255))
    if mode == "LA":
        image = image.convert("LA")
    if mode == "P":
        image = image.quantize(4)
        assert "transparency" in Image.open(io.BytesIO(encoded(image))).info
    result = pixels(encoded(image))
    assert (result[:, :2] == 80).all()
    assert (result[:, 2:] == 255).all()


def test_half_transparency_is_blended():
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert pixels(encoded(image)).ravel().tolist() == [127, 127, 127]


@needs_turbojpeg
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format, orientation):
    upright = picture()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that makes the stored image
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    data = encoded(stored, format, exif=exif, **options)
    assert decode(data)[0].size == upright.size
    assert np.abs(pixels(data) - np.asarray(upright)).mean() < 4
    assert decode(data)[1] == (format == "JPEG" and orientation == 1)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel():
    assert prepare(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), KEEP._replace(raw_pixels=1)) == (
        1,
        1,
        False,
        b"\1\2\3",
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_image_is_refused(format, share):
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), format)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


@needs_turbojpeg
def test_a_truncated_jpeg_with_an_end_marker_is_refused():
    """Pillow alone would fill the missing part with gray."""
    data = noise_jpeg()
    with pytest.raises(ImageError, match="damaged or incomplete"):
        decode(data[: len(data) // 2] + b"\xff\xd9")


@needs_turbojpeg
def test_a_jpeg_without_its_end_is_refused():
    with pytest.raises(ImageError, match="damaged or incomplete"):
        decode(noise_jpeg()[:-2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no image at all", "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a known format"),
        (b"\xff\xd8\xff" + bytes(100), "is not an image of a known format"),
    ],
)
def test_files_that_are_not_images_are_refused(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_absurd_size_is_refused(side):
    """One bit per pixel: a file of 50 kB with up to 400 million pixels."""
    data = encoded(Image.new("1", (side, side)))
    with pytest.raises(ImageError, match="has more than 89,478,485 pixels"):
        decode(data)


@needs_turbojpeg
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_sound_jpeg_keeps_its_bytes(mode, options):
    data = encoded(picture().convert(mode), "JPEG", **options)
    assert prepare(data, KEEP) == (60, 90, True, data)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(pixels(data) - reference).max() <= 2  # two versions of the same decoder


@needs_turbojpeg
def test_a_jpeg_stored_as_rgb_keeps_its_bytes_and_colours():
    data = encoded(picture(), "JPEG", keep_rgb=True, quality=95)
    assert prepare(data, KEEP).data == data
    assert np.abs(pixels(data) - np.asarray(picture())).max() < 12


@needs_turbojpeg
def test_small_images_are_stored_as_pixels():
    data = encoded(picture(64, 64), "JPEG")
    recipe = KEEP._replace(raw_pixels=64 * 64)
    sample = prepare(data, recipe)
    assert (sample.jpeg, len(sample.data)) == (False, 64 * 64 * 3)
    assert (np.frombuffer(sample.data, np.uint8).reshape(64, 64, 3) == pixels(data)).all()
    assert prepare(encoded(picture(64, 65), "JPEG"), recipe).jpeg


def test_quality_encodes_everything():
    data = encoded(picture(8, 8), "JPEG", quality=100)
    sample = prepare(data, PackingRecipe(None, 30, 64 * 64, 65_500))
    assert sample.jpeg and sample.data != data
    assert Image.open(io.BytesIO(sample.data)).quantization[0][0] == 27  # the standard table's 16 at quality 30


def test_other_files_are_encoded_at_quality_90():
    sample = prepare(encoded(picture(), "PNG"), KEEP)
    assert sample.jpeg
    assert np.abs(pixels(sample.data) - np.asarray(picture())).mean() < 2


def test_pixels_are_stored_unchanged():
    array = RNG.integers(0, 256, (8, 6, 3), np.uint8)
    assert prepare(array, KEEP._replace(raw_pixels=48)) == (8, 6, False, array.tobytes())


@pytest.mark.parametrize(("size", "expected"), [((90, 60), (45, 30)), ((60, 90), (30, 45)), ((900, 2), (45, 1))])
def test_max_resolution_limits_the_longest_side(size, expected):
    sample = prepare(encoded(picture(size[1], size[0]), "JPEG"), KEEP._replace(max_resolution=45))
    assert (sample.width, sample.height) == expected
    assert decode(sample.data)[0].size == expected


@needs_turbojpeg
def test_max_resolution_never_enlarges():
    data = encoded(picture(), "JPEG")
    assert prepare(data, KEEP._replace(max_resolution=90)).data == data


def test_scaling_down_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    sample = prepare(encoded(Image.fromarray(stripes)), PackingRecipe(16, None, 10**6, 65_500))
    inside = np.frombuffer(sample.data, np.uint8).reshape(16, 16, 3)[:, 2:-2]
    assert np.abs(inside.astype(int) - 127).max() <= 3


def test_too_long_a_side_is_refused():
    with pytest.raises(ImageError, match=r"has 90 x 60 pixels, more than 80 a side: give --max-resolution"):
        prepare(encoded(picture(), "JPEG"), KEEP._replace(max_side=80))


def test_without_turbojpeg_files_do_not_keep_their_bytes_unchecked(monkeypatch):
    monkeypatch.setattr(images, "TURBOJPEG", "libabsent.so.0")
    data = encoded(picture(), "JPEG")
    with pytest.raises(UserError, match="libturbojpeg"):
        prepare(data, KEEP)
    assert prepare(data, KEEP._replace(quality=80)).jpeg
    assert not prepare(data, KEEP._replace(raw_pixels=10**6)).jpeg
    with pytest.raises(ImageError, match="truncated"):
        decode(noise_jpeg()[:-100])
