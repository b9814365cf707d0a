"""Which way up a picture is: the orientation that its file gives, 1 to 8 as EXIF numbers them (CIPA DC-008, tag 274).

PNG files carry it in an eXIf chunk, in XMP, or in the text profiles of ImageMagick, each before or after the pixels. We
look through the chunks ourselves: Pillow would decode the whole picture to look at its end.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

_TAG = 0x0112
_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")
_MOST_TEXT = 2**20  # bytes of a compressed text that we look at
_DAMAGED = (SyntaxError, struct.error, ValueError, LookupError, TypeError)  # what Pillow raises on EXIF that is cut
_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image, data: bytes) -> int:
    """The orientation of an opened image whose file is ``data``; 1 (upright) where it gives none that can be read."""
    if image.format == "PNG":
        return _of_png(data)
    try:
        value = image.getexif().get(_TAG, 1)
    except _DAMAGED:  # notes beside the pixels: no reader learns an orientation from them
        return 1
    return value if value in _METHODS else 1


def upright(image: Image.Image, data: bytes) -> Image.Image:
    """The picture as it should be seen; decodes it. A TIFF is turned by Pillow while it is decoded."""
    if image.format == "TIFF":
        image.load()
        return image
    method = _METHODS.get(orientation(image, data))
    return image if method is None else image.transpose(method)


def lies_on_its_side(image: Image.Image, data: bytes) -> bool:
    """Whether `upright` swaps rows and columns of an opened image that was not decoded yet."""
    return image.format != "TIFF" and orientation(image, data) >= 5  # the size that Pillow tells of a TIFF is upright


def _of_png(data: bytes) -> int:
    """EXIF before XMP, as Pillow ranks them."""
    xmp: list[bytes] = []
    for kind, content in _png_notes(data):
        name, _, text = content.partition(b"\0")
        if kind == b"eXIf":
            exif = content
        elif name in (b"Raw profile type exif", b"Raw profile type APP1"):
            exif = _profile(_text(kind, text))
        else:
            if name == b"XML:com.adobe.xmp":
                xmp.append(_text(kind, text))
            elif name == b"Raw profile type xmp":
                xmp.append(_profile(_text(kind, text)))
            continue
        if exif.startswith(b"http://ns.adobe.com/xap/"):  # an APP1 profile holds either
            xmp.append(exif)
        elif (value := _of_exif(exif)) is not None:
            return value
    found = next((match for match in map(_XMP.search, xmp) if match), None)
    return int(found[1]) if found else 1


def _png_notes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the chunks that may hold an orientation; a cut file ends them."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length


def _text(kind: bytes, text: bytes) -> bytes:
    """What follows the keyword of a text chunk, decompressed."""
    if kind == b"tEXt":
        return text
    compressed = kind == b"zTXt" or text[:1] == b"\1"
    # after the flag and the method of the compression, iTXt has a language and a translated keyword
    text = text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text[1:]
    try:
        return zlib.decompressobj().decompress(text, _MOST_TEXT) if compressed else text
    except zlib.error:
        return b""


def _profile(text: bytes) -> bytes:
    """The bytes of ImageMagick's text: a name and a length, then hexadecimal digits on lines."""
    lines = text.strip().split(b"\n")
    try:
        return bytes.fromhex(b"".join(lines[2:]).decode("ascii"))
    except ValueError:
        return b""


def _of_exif(exif: bytes) -> int | None:
    notes = Image.Exif()
    try:
        notes.load(exif.removeprefix(b"Exif\0\0"))
        value = notes.get(_TAG)
    except _DAMAGED:
        return None
    return value if value in (1, *_METHODS) else None
