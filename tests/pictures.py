"""Files of pictures that are to be turned: every place in which a format keeps an orientation."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

TAG = 0x0112


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as it should be seen, by numpy alone (CIPA DC-008, figure of tag 274)."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation](stored)


def exif_of(orientation: int) -> bytes:
    """An EXIF block that holds the orientation alone, from its byte order mark on."""
    exif = Image.Exif()
    exif[TAG] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def xmp_of(orientation: int) -> bytes:
    """An XMP packet that holds the orientation alone."""
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def profile_of(name: str, content: bytes) -> bytes:
    """A text as ImageMagick writes a profile: name, length, lines of hexadecimal digits."""
    digits = content.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return f"\n{name}\n{len(content):8}\n".encode() + "\n".join(lines).encode() + b"\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG_CHUNKS = {
    "exif": lambda o: chunk(b"eXIf", exif_of(o)),
    "xmp": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(o)),
    "compressed xmp": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp_of(o))),
    "exif profile": lambda o: chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile_of("exif", b"Exif\0\0" + exif_of(o)))
    ),
    "app1 profile": lambda o: chunk(
        b"tEXt", b"Raw profile type APP1\0" + profile_of("generic", b"Exif\0\0" + exif_of(o))
    ),
    "xmp profile": lambda o: chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(profile_of("xmp", xmp_of(o)))),
}


def write_png(path: Path, pixels: np.ndarray, *notes: bytes, behind: bool = False) -> None:
    """A PNG with these further chunks, before the pixels or behind them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data, at = buffer.getvalue(), len(buffer.getvalue()) - 12 if behind else 33  # before IEND; after IHDR
    path.write_bytes(data[:at] + b"".join(notes) + data[at:])


def write_tiff(path: Path, pixels: np.ndarray, orientation: int, layout: str) -> None:
    """A TIFF by tifffile or, for the compressions that it lacks, by Pillow."""
    if layout in ("tiff_lzw", "packbits"):
        exif = Image.Exif()
        exif[TAG] = orientation
        Image.fromarray(pixels).save(path, "TIFF", compression=layout, exif=exif)
        return
    options = {
        "plain": {},
        "strips": {"rowsperstrip": 3},
        "tiles": {"tile": (16, 16)},
        "deflate": {"compression": "zlib"},
        "predictor": {"compression": "zlib", "predictor": True},
        "big endian": {"byteorder": ">"},
        "BigTIFF": {"bigtiff": True},
    }[layout]
    settings = {name: options.pop(name) for name in ("byteorder", "bigtiff") if name in options}
    with tifffile.TiffWriter(path, **settings) as file:
        file.write(
            pixels,
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
            metadata=None,
            extratags=[(TAG, 3, 1, orientation, False)],
            **options,
        )


TIFF_LAYOUTS = ("plain", "strips", "tiles", "deflate", "predictor", "big endian", "BigTIFF", "tiff_lzw", "packbits")
