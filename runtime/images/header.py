"""The header of an image file, read before anything is decoded: size, channels and colour.

OpenCV takes the memory for all pixels before it looks at one, and drops what its arrays have no place for. So only
formats whose header is read here are decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.errors import SourceError
from runtime.images.exif import ORIENTATION, exif_orientation, first_directory, xmp_orientation
from runtime.images.iso_boxes import avif_header, jp2_header

_MAX_TEXT_BYTES = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_J2K = b"\xff\x4f\xff\x51"

Alpha = Literal["straight", "premultiplied", "none"]


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
        format: The format's name.
        width, height: In pixels, as stored: before the orientation turns them.
        orientation: 1..8 as EXIF counts; 1 is upright.
        turned: Whether OpenCV turns the pixels upright itself, even when it is asked for them unchanged.
        peak: The greatest value of a sample where the file states one; None where that is its type's.
        alpha: The meaning of OpenCV's fourth channel.
        key: The grey value that a PNG declares transparent.
        depth: Bits of a sample, where they may be fewer than 8.
        lossy: Whether it may not keep the numbers that were saved.
        palette: Whether pixels are indices of a palette.
        unread: Why OpenCV would read it wrongly; None when it does not.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    turned: bool = False
    peak: int | None = None
    alpha: Alpha = "straight"
    key: int | None = None
    depth: int = 8
    palette: bool = False
    lossy: bool = False
    unread: str | None = None


def read_header(data: bytes, name: str) -> ImageHeader:
    """The header of the bytes of an image file; ``name`` is for messages.

    Raises:
        SourceError: They are no image of a format that is read, or its header is damaged.
    """
    for start, read in _READERS:
        if re.match(start, data, re.DOTALL):
            try:
                header = read(data)
            except (ValueError, LookupError, struct.error, zlib.error) as error:
                reason = error if isinstance(error, ValueError) else "its header is not complete"
                raise SourceError(f"{name} is damaged or cut short: {reason}") from error
            if header.unread:
                raise SourceError(f"{name} is not read: {header.unread}")
            if header.width < 1 or header.height < 1:
                raise SourceError(f"{name} is damaged: it has {header.width} x {header.height} pixels")
            return header
    if not data:
        raise SourceError(f"{name} is empty: it has no bytes, and is not an image")
    kind = next((kind for start, kind in _OTHERS if re.match(start, data, re.DOTALL)), None)
    if kind is not None:
        raise SourceError(f"{name} is {kind}, which is not an image that OpenCV can decode")
    raise SourceError(f"{name} is not an image that OpenCV can decode, or it is damaged")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG, kind and content."""
    position = len(_PNG)
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += 12 + length


def _jpeg(data: bytes) -> ImageHeader:
    size, exif, xmp = None, None, None
    position = 2
    while True:
        position = data.find(b"\xff", position) + 1  # libjpeg skips what is no marker, too
        if position == 0 or position == len(data):
            raise ValueError("the JPEG ends before its pixels begin")
        marker = data[position]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            continue
        if marker in (0xD9, 0xDA):  # the end, or the pixels
            break
        (length,) = struct.unpack_from(">H", data, position + 1)
        body = data[position + 3 : position + 1 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", body, 1)
            size = (width, height) if size is None else (max(width, size[0]), max(height, size[1]))
        elif marker == 0xE1 and body.startswith(b"Exif\0\0") and exif is None:
            exif = exif_orientation(body)
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0") and xmp is None:
            xmp = xmp_orientation(body)
        position += 1 + length
    if size is None:
        raise ValueError("the JPEG has no frame")
    if data.find(b"\xff\xd9", position) < 0:  # OpenCV before 5.0 would give the rest in grey
        raise ValueError("the JPEG is cut short")
    return ImageHeader("JPEG", *size, exif or xmp or 1, lossy=True)


def _png(data: bytes) -> ImageHeader:
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    exif, xmp, key = None, None, None
    for chunk, body in png_chunks(data):
        if chunk == b"eXIf":
            exif = exif_orientation(body)
        elif chunk in (b"tEXt", b"zTXt") and body.startswith(b"Raw profile type exif\0") and exif is None:
            exif = exif_orientation(_raw_profile(body.partition(b"\0")[2], packed=chunk == b"zTXt"))
        elif chunk == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
            xmp = xmp_orientation(body)
        elif chunk == b"tRNS" and kind == 0:
            (key,) = struct.unpack_from(">H", body)
        elif chunk == b"fcTL":  # a frame of an animation
            width, height = (
                max(pair) for pair in zip((width, height), struct.unpack_from(">II", body, 4), strict=True)
            )
    if key is not None and depth < 8:
        key *= 255 // (2**depth - 1)  # as OpenCV gives the pixels
    return ImageHeader("PNG", width, height, exif or xmp or 1, key=key, depth=depth, palette=kind == 3)


def _raw_profile(text: bytes, *, packed: bool) -> bytes:
    """Parse EXIF as ImageMagick writes it: a line with its name, one with its length, then hexadecimal digits."""
    if packed:
        text = zlib.decompressobj().decompress(text[1:], _MAX_TEXT_BYTES)
    return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))


def _webp(data: bytes) -> ImageHeader:
    width = height = 0
    exif, xmp, lossy = None, None, False
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + length]
        size = (0, 0)
        if kind == b"VP8X":
            size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif kind == b"VP8 ":
            lossy = True
            across, down = struct.unpack_from("<HH", body, 6)
            size = (across & 0x3FFF, down & 0x3FFF)
        elif kind == b"EXIF":
            exif = exif_orientation(body)
        elif kind == b"XMP ":
            xmp = xmp_orientation(body)
        width, height = max(width, size[0]), max(height, size[1])
        position += 8 + length + length % 2
    return ImageHeader("WebP", width, height, exif or xmp or 1, lossy=lossy)


def _tiff(data: bytes) -> ImageHeader:
    tags = first_directory(data)

    def tag(number: int, default: int) -> int:
        return tags.get(number, (default,))[0]

    width, height, bits, samples = tag(256, 0), tag(257, 0), max(tags.get(258, (1,))), tag(277, 1)
    photometric, orientation = tag(262, 1), tag(ORIENTATION, 1)
    colors = 1 if photometric in (0, 1, 3) else 4 if photometric == 5 else 3
    extra = tag(338, -1)  # 0 is anything, 1 premultiplied alpha, 2 straight alpha
    unread = None
    if tag(254, 0) & 1:
        unread = "its first picture is a thumbnail, as in a camera's raw file; convert it to JPEG or PNG"
    elif samples > colors and (colors != 3 or samples > 4):
        unread = "a TIFF with an alpha or extra channel beside grey or CMYK; save it as PNG"
    elif bits not in (1, 2, 4, 8, 16) or tag(339, 1) != 1:
        form = {2: "signed", 3: "floating point"}.get(tag(339, 1), "whole")
        cure = "as (image * 255).round().astype('uint8') of 0..1" if form == "floating point" else "scaled to 0..255"
        unread = (
            f"a TIFF with {form} numbers of {bits} bits, whose range it does not say; save 8 bits a channel, {cure}"
        )
    elif bits == 16 and photometric not in (1, 2):
        unread = "a TIFF of 16 bits that is neither grey nor RGB; save it with 8 bits a channel"
    alpha: Alpha = "straight"
    declared: Alpha
    if samples == 4 and colors == 3:
        # libtiff multiplies 8 bits by an alpha that the file declares straight, and leaves 16 as they are.
        declared = "premultiplied" if extra == 1 or (extra == 2 and bits <= 8) else "straight"
        alpha = "none" if extra == 0 else declared
    tile = max(1, tag(322, 1)) * max(1, tag(323, 1))
    if tile > width * height:
        width, height = max(width, tag(322, 1)), max(height, tag(323, 1))
    return ImageHeader(
        "TIFF",
        width,
        height,
        orientation if 1 <= orientation <= 8 else 1,
        turned=True,
        alpha=alpha,
        depth=bits,
        palette=photometric == 3,
        lossy=tag(259, 1) in (6, 7),
        unread=unread,
    )


def _bmp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    return ImageHeader("BMP", abs(width), abs(height), palette=bits <= 8 and not _is_grey_ramp(data, size, bits))


def _is_grey_ramp(data: bytes, size: int, bits: int) -> bool:
    """Whether a BMP's palette is the grey ramp, as OpenCV writes grey images."""
    bytes_each = 3 if size == 12 else 4
    count = struct.unpack_from("<I", data, 46)[0] if size >= 40 else 0
    count = min(count or 2**bits, 2**bits)
    table = data[14 + size : 14 + size + count * bytes_each]
    shades = [255 * index // max(count - 1, 1) for index in range(count)]
    return all(table[i * bytes_each : i * bytes_each + 3] == bytes([shade] * 3) for i, shade in enumerate(shades))


def _gif(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("GIF", width, height, palette=True)


def _pnm(data: bytes) -> ImageHeader:
    if data[:2] == b"P7":
        fields = dict(line.split()[:2] for line in data[: data.index(b"ENDHDR")].split(b"\n") if len(line.split()) == 2)
        return ImageHeader("PAM", int(fields[b"WIDTH"]), int(fields[b"HEIGHT"]), peak=_peak(int(fields[b"MAXVAL"])))
    bitmap = data[:2] in (b"P1", b"P4")
    gap = rb"(?:\s|#[^\n]*\n)+"
    form = rb"P\d" + (gap + rb"(\d{1,9})") * (2 if bitmap else 3) + rb"\s"
    match = re.match(form, data)
    if match is None:
        raise ValueError("the PNM header is not complete")
    width, height, *peak = map(int, match.groups())
    return ImageHeader("PNM", width, height, peak=_peak(peak[0]) if peak else None)


def _peak(value: int) -> int | None:
    if not 0 < value < 65536:
        raise ValueError(f"the greatest value is {value}; allowed: 1 to 65535")
    return None if value == 255 else value


def _avif(data: bytes) -> ImageHeader:
    width, height, bits, orientation = avif_header(data)
    return ImageHeader("AVIF", width, height, orientation, peak=2**bits - 1 if bits > 8 else None, lossy=True)


def _jp2(data: bytes) -> ImageHeader:
    width, height, bits = jp2_header(data)
    return ImageHeader("JPEG 2000", width, height, peak=2**bits - 1 if bits > 8 else None, lossy=True)


_READERS: tuple[tuple[bytes, Callable[[bytes], ImageHeader]], ...] = (
    (rb"\xff\xd8\xff", _jpeg),
    (re.escape(_PNG), _png),
    (rb"RIFF....WEBP", _webp),
    (rb"II[*+]\0|MM\0[*+]", _tiff),
    (rb"BM", _bmp),
    (rb"GIF8[79]a", _gif),
    (rb"P[1-6]\s|P7\n", _pnm),
    (rb"....ftypavi[fs]|....ftyp(mif1|msf1|miaf).{4}(?=.{0,48}avif)", _avif),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|" + re.escape(_J2K), _jp2),
)
_OTHERS = (
    (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "HEIC (convert it to JPEG or PNG)"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL (convert it to JPEG or PNG)"),
    (rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3", "a video (give it to stream())"),
    (rb"v/1\x01|#\?R|P[Ff]\s", "a picture of floating point numbers without a known range (save 0..255 as PNG)"),
    (rb"8BPS", "a Photoshop file (save it as JPEG or PNG)"),
    (rb"%PDF", "a PDF"),
    (rb"\s*<", "HTML, SVG or XML"),
    (rb"\0\x05\x16\x07", "what macOS keeps beside a file (AppleDouble)"),
    (rb"\0\0[\x01\x02]\0", "an icon"),
)
