"""A folder of images as the world has them: unusual ones that train, and bad ones that cannot be decoded."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

LONG_NAME = "l" * 251 + ".png"  # 255 bytes
HUGE = 60000  # pixels of a side that a header declares


def photograph(seed=0, height=40, width=52):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def write_good_images(folder: Path) -> set[str]:
    """Images that train, each of them unusual in its file, its shape or its name; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    frames = [photograph(seed) for seed in (21, 22, 23)]
    animation = {"save_all": True, "append_images": frames[1:]}
    deep = np.random.default_rng(1).integers(0, 2**16, (40, 52), dtype=np.uint16)

    photograph(1).save(folder / "rgb.jpg")
    photograph(2).convert("L").save(folder / "gray.jpg")
    photograph(3).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(deep).save(folder / "deep.png")
    photograph(4).quantize(16).save(folder / "palette.png")
    photograph(5).convert("LA").save(folder / "gray_alpha.png")
    for suffix in ("gif", "png", "webp"):
        frames[0].save(folder / f"animated_{suffix}.{suffix}", **animation)
    photograph(6, 4, 4).resize((1, 1)).save(folder / "one_pixel.png")
    photograph(7, 4, 5000).resize((5000, 1)).save(folder / "strip.png")
    photograph(8).save(folder / "rotated.jpg", exif=sideways)
    for seed, name in enumerate(["with space.png", "it's.png", "caf\u00e9.png", "a; b (c).png", LONG_NAME], start=9):
        photograph(seed).save(folder / name)
    return set(os.listdir(folder))


def write_bad_images(folder: Path) -> set[str]:
    """Images that cannot be decoded; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("jpg", "png"):
        photograph(31, 80, 80).save(folder / "whole", {"jpg": "jpeg"}.get(suffix, suffix))
        data = (folder / "whole").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "whole").unlink()
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"not an image\n",
        "page.jpg": b"<html>404</html>",
        "x; y (z).jpg": b"no",
        "esc\x1b[31m.jpg": b"no",
        "bomb.png": huge_png(),
        "bomb.jpg": huge_jpeg(),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {"truncated.jpg", "truncated.png", *contents}


def huge_png() -> bytes:
    """A PNG of a few bytes that declares 60000 x 60000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def huge_jpeg() -> bytes:
    """A small JPEG whose header declares 60000 x 60000 pixels."""
    buffer = io.BytesIO()
    photograph(32).save(buffer, "jpeg")
    data = bytearray(buffer.getvalue())
    size = data.index(b"\xff\xc0\0\x11\x08") + 5
    data[size : size + 4] = 2 * HUGE.to_bytes(2)
    return bytes(data)


def write_latin1_name(folder: Path) -> bool:
    """An image whose name is no UTF-8; False where the file system refuses such names."""
    photograph(41).save(folder / "latin.png")
    try:
        os.rename(folder / "latin.png", os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    except OSError:
        (folder / "latin.png").unlink()
        return False
    return True
