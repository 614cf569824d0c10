"""Any image file becomes RGB, or an error with its name."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from modeling_kamim.data import decoding as images
from modeling_kamim.data.decoding import BadImageError, decode_image
from modeling_kamim.errors import InputError

GENERATOR = np.random.default_rng(0)
RGB = GENERATOR.integers(0, 256, (12, 17, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
ALPHA = GENERATOR.integers(0, 256, (12, 17), dtype=np.uint8)


def encode(image, file_format="png", **settings):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def decode(data):
    pixels = decode_image({"bytes": data, "path": None})
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return pixels


def pillow_pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def test_rgb_is_exact_from_bytes_and_from_a_path(tmp_path):
    data = encode(Image.fromarray(RGB))
    (tmp_path / "image.png").write_bytes(data)
    assert np.array_equal(decode(data), RGB)
    assert np.array_equal(decode_image({"bytes": None, "path": str(tmp_path / "image.png")}), RGB)
    assert np.array_equal(decode_image({"path": str(tmp_path / "image.png")}), RGB)
    # Where there are both, the bytes are the image and the path is its former name.
    assert np.array_equal(decode_image({"bytes": data, "path": "gone/image.png"}), RGB)


def test_gray_has_three_equal_channels():
    assert np.array_equal(decode(encode(Image.fromarray(GRAY))), np.repeat(GRAY[..., None], 3, axis=2))


def test_one_bit_is_black_and_white():
    bits = GRAY > 127
    pixels = decode(encode(Image.fromarray(bits)))
    assert np.array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


def test_palette_is_looked_up():
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode(encode(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_dropped():
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode(encode(palette, transparency=3)), expected)
    assert np.array_equal(decode(encode(palette, transparency=bytes(range(16)))), expected)
    assert np.array_equal(decode(encode(Image.fromarray(np.dstack([RGB, ALPHA])))), RGB)
    gray = np.repeat(GRAY[..., None], 3, axis=2)
    assert np.array_equal(decode(encode(Image.fromarray(np.dstack([GRAY, ALPHA]), mode="LA"))), gray)


def test_cmyk_is_converted():
    image = Image.fromarray(RGB).convert("CMYK")
    assert np.array_equal(decode(encode(image, "tiff")), np.asarray(image.convert("RGB")))
    jpeg = encode(image, "jpeg", quality=95, subsampling=0)
    assert np.abs(decode(jpeg).astype(int) - RGB).mean() < 6  # not inverted


UPRIGHT = {  # EXIF orientation -> how the stored pixels become upright
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, -1)[:, ::-1],
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("file_format", ["png", "jpeg"])
def test_exif_orientation_is_applied(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(RGB), file_format, exif=exif)
    pixels = decode(data)
    assert np.array_equal(pixels, pillow_pixels(data))
    if file_format == "png":
        if orientation == 7:  # mirrored along the other diagonal
            assert np.array_equal(pixels, RGB[::-1, ::-1].transpose(1, 0, 2))
        else:
            assert np.array_equal(pixels, UPRIGHT[orientation](RGB))


def sideways():
    """EXIF that turns an image by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (17, 12), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data), np.full((12, 17, 3), (255, 0, 0), np.uint8))


def test_result_can_be_used_by_opencv_and_torch():
    pixels = decode(encode(Image.fromarray(RGB)))
    assert pixels.flags["C_CONTIGUOUS"]


def without_pillow(monkeypatch):
    def refuse(data):
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr(images, "_decode_with_pillow", refuse)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@st.composite
def jpegs(draw):
    """JPEG of an image between noise and a flat color."""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    contrast = draw(st.sampled_from([0.0, 0.2, 1.0]))
    pixels = (contrast * generator.integers(0, 256, (height, width, 3))).astype(np.uint8)
    options = {
        "quality": draw(st.integers(30, 100)),
        "progressive": draw(st.booleans()),
        "icc_profile": draw(st.sampled_from([None, SRGB])),
    }
    if draw(st.booleans()):
        return encode(Image.fromarray(pixels), "jpeg", subsampling=draw(st.sampled_from([0, 1, 2])), **options)
    return encode(Image.fromarray(pixels[..., 0]), "jpeg", **options)


@settings(max_examples=200)
@given(jpegs())
def test_plain_jpegs_get_pillows_pixels_without_pillow(data):
    expected = pillow_pixels(data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_pillow(monkeypatch)
        assert np.array_equal(decode(data), expected)


@settings(max_examples=200)
@given(jpegs(), st.sampled_from([2, 4, 8]))
def test_reduced_jpegs_get_the_pixels_of_pillows_draft(data, factor):
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        image.draft(None, (-(-width // factor), -(-height // factor)))
        expected = np.asarray(image.convert("RGB"))
    sizes = []

    def least_size(height, width):
        sizes.append((height, width))
        return -(-height // factor), -(-width // factor)

    with pytest.MonkeyPatch.context() as monkeypatch:
        without_pillow(monkeypatch)
        pixels = decode_image({"bytes": data, "path": None}, least_size=least_size)
    assert sizes == [(height, width)]
    assert pixels.shape[0] >= height / factor and pixels.shape[1] >= width / factor
    if expected.shape == pixels.shape:  # below 8 pixels other factors round to the same size
        assert np.array_equal(pixels, expected)
    assert np.array_equal(
        decode_image({"bytes": data, "path": None}, least_size=lambda *size: size), pillow_pixels(data)
    )


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(monkeypatch):
    data = encode(Image.fromarray(RGB), "jpeg")
    expected = pillow_pixels(data)
    without_pillow(monkeypatch)
    for tail in (b"\0" * 1000, b"a motion photo", data):
        assert np.array_equal(decode(data + tail), expected)


@settings(max_examples=200)
@given(jpegs(), st.data())
def test_a_jpeg_with_a_changed_byte_is_what_pillow_makes_of_it(data, draw):
    position = draw.draw(st.integers(2, len(data) - 1))
    damaged = data[:position] + bytes([draw.draw(st.integers(0, 255))]) + data[position + 1 :]
    try:
        expected = pillow_pixels(damaged)
    except Exception:
        with pytest.raises(BadImageError):
            decode(damaged)
    else:
        assert np.array_equal(decode(damaged), expected)


def test_cmyk_jpegs_get_pillows_pixels():
    for options in ({}, {"progressive": True}, {"icc_profile": SRGB}):
        data = encode(Image.fromarray(RGB).convert("CMYK"), "jpeg", **options)
        assert np.array_equal(decode(data), pillow_pixels(data))


def test_rgb_jpegs_get_pillows_pixels():
    data = encode(Image.fromarray(RGB), "jpeg", keep_rgb=True)
    assert np.array_equal(decode(data), pillow_pixels(data))


def segment(marker, payload):
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2) + payload


def test_exif_after_other_segments_is_found():
    data = encode(Image.fromarray(RGB), "jpeg")
    exif = segment(0xE1, b"Exif\0\0" + sideways().tobytes().removeprefix(b"Exif\0\0"))
    for length in (0, 3000, 65519):
        profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(length))
        turned = data[:2] + profile + exif + data[2:]
        assert pillow_pixels(turned).shape == (17, 12, 3)
        assert np.array_equal(decode(turned), pillow_pixels(turned))


def test_orientation_in_xmp_is_applied_to_a_jpeg_too():
    data = encode(Image.fromarray(RGB), "jpeg", xmp=b'<rdf:Description tiff:Orientation="6"/>')
    assert pillow_pixels(data).shape == (17, 12, 3)
    assert np.array_equal(decode(data), pillow_pixels(data))


def test_a_huge_header_is_refused_before_memory_is_taken(monkeypatch):
    data = bytearray(encode(Image.fromarray(RGB), "jpeg"))
    size = data.index(b"\xff\xc0\0\x11\x08") + 5
    data[size : size + 4] = 2 * (65500).to_bytes(2)
    decoded = []
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", decoded.append)
    with pytest.raises(BadImageError, match="huge.jpg.*DecompressionBomb"):
        decode_image({"bytes": bytes(data), "path": "huge.jpg"})
    assert decoded == []


def truncated(file_format, **options):
    data = encode(Image.fromarray(np.tile(RGB, (10, 10, 1))), file_format, **options)
    return data[: len(data) // 2]


BROKEN = {
    "half_a_png": truncated("png"),
    "half_a_jpeg": truncated("jpeg"),
    "half_a_progressive_jpeg": truncated("jpeg", progressive=True),
    "jpeg_without_its_end": encode(Image.fromarray(RGB), "jpeg")[:-20],
    "jpeg_header": encode(Image.fromarray(RGB), "jpeg")[:20],
    "empty": b"",
    "text": b"this is not an image\n",
    "html": b"<html><body>404 Not Found</body></html>",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_images_raise_and_are_named(case, tmp_path):
    file = tmp_path / f"{case}.jpg"
    file.write_bytes(BROKEN[case])
    with pytest.raises(BadImageError, match=case) as error:
        decode_image({"bytes": None, "path": str(file)})
    assert "--bad_images skip" in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, InputError)
    with pytest.raises(BadImageError, match="the image in row 7"):
        decode_image({"bytes": BROKEN[case], "path": None}, name="the image in row 7")
    with pytest.raises(BadImageError, match="photos/one.jpg"):
        decode_image({"bytes": BROKEN[case], "path": "photos/one.jpg"}, name="the image in row 7")


def test_missing_files_raise_and_are_named(tmp_path):
    with pytest.raises(BadImageError, match="gone.png"):
        decode_image({"bytes": None, "path": str(tmp_path / "gone.png")})
    with pytest.raises(BadImageError, match="row 3"):
        decode_image({"bytes": None, "path": None}, name="row 3")
