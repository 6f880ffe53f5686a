"""The files of a data set: those below a folder, or those inside a zip, which is read without unpacking it."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterator, KeysView, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from runtime.common.files import ZIP_ERRORS, open_regular
from runtime.common.json_data import parse_json
from runtime.common.limits import max_file_bytes
from runtime.errors import EdgevisError, InputError, SchemaError, SourceError
from runtime.images.decode import SUFFIXES, Image, decode_image
from runtime.images.folders import MAX_ENTRIES, files_below, images_of, is_hidden, warn_left_out, why_left_out

MAX_TABLE_BYTES = 64 << 20

_LOCAL_HEADER = struct.Struct("<4s22xHH")
# German and other editions of Excel write semicolons; the second of two equally frequent ones is never meant.
_SEPARATORS = (",", ";", "\t")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Packed:
    """The offset of a file in a zip, and its unpacked size and checksum."""

    offset: int
    packed_bytes: int
    size_bytes: int
    deflated: bool
    checksum: int


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """A listing that holds no file open: it may be shared by threads, forked and sent to other processes.

    Attributes:
        path: The folder or zip.
        inside: The folder in it that names start from; empty for all of it.
    """

    path: Path
    inside: str
    _entries: Mapping[str, _Packed | None]

    @property
    def names(self) -> KeysView[str]:
        """The files' paths, sorted, with ``/`` between folders; hidden files are left out."""
        return self._entries.keys()

    def where(self, name: str) -> str:
        """The file, for messages."""
        return f"{self.inside}{name} in {self.path}"

    def below(self, folder: str) -> list[str]:
        """The files in ``folder`` and its folders, sorted.

        Raises:
            SourceError: There are none.
        """
        names = [name for name in self._entries if name.startswith(f"{folder}/")]
        if not names:
            raise SourceError(f"{self.path} has no folder {self.inside}{folder} with files in it")
        return names

    def require(self, name: str, purpose: str) -> str:
        """``name`` unchanged, if there is such a file.

        Raises:
            SourceError: There is no such file; the message says that it is needed for ``purpose``.
        """
        if name not in self._entries:
            raise SourceError(f"{self.path} has no file {self.inside}{name}, {purpose}")
        return name

    def listed(self, name: str, table: str) -> str:
        """The file that a table lists; other folder separators and Unicode forms of its name match.

        Raises:
            SourceError: There is no such file.
        """
        if name in self._entries:
            return name
        plain = unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))
        for other in (plain, unicodedata.normalize("NFD", plain)):  # macOS writes the second
            if other in self._entries:
                return other
        return self.require(name, f"which {table} lists")

    def signature(self, name: str) -> tuple[int, ...]:
        """A signature available without reading the file: equal contents have equal signatures.

        Raises:
            SourceError: There is no such file.
        """
        self.require(name, "which is to be compared")
        packed = self._entries[name]
        if packed is not None:
            return packed.size_bytes, packed.checksum
        try:
            return ((self.path / self.inside / name).stat().st_size,)
        except OSError as error:
            raise SourceError(f"{self.where(name)} cannot be read: {error}") from error

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """The bytes of one file.

        Raises:
            SourceError: There is no such file, it is larger than ``max_bytes`` (None: than an image file may be), or
                it is damaged.
        """
        max_bytes = max_file_bytes() if max_bytes is None else max_bytes
        self.require(name, "which is to be read")
        packed = self._entries[name]
        try:
            if packed is None:
                return self._read_file(name, max_bytes)
            _check_size(packed.size_bytes, max_bytes, self.where(name))
            return self._unpack(packed)
        except EdgevisError:  # some are OSErrors or ValueErrors, too
            raise
        except ZIP_ERRORS as error:
            raise SourceError(f"{self.where(name)} cannot be read: {error}") from error

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of one file, of whatever size, a block at a time.

        Raises:
            SourceError: There is no such file, or it is damaged.
        """
        self.require(name, "which is to be read")
        packed = self._entries[name]
        try:
            if packed is None:
                with open_regular(self.path / self.inside / name) as file:
                    while block := file.read(_BLOCK_BYTES):
                        yield block
            else:
                yield from self._unpacked(packed)
        except EdgevisError:
            raise
        except ZIP_ERRORS as error:
            raise SourceError(f"{self.where(name)} cannot be read: {error}") from error

    def stamp(self, name: str) -> tuple[str, int]:
        """A stamp that changes when the file is written or replaced, and the later of its times.

        Returns:
            Size, times and inode as text, those of the zip for a file inside; and nanoseconds since 1970.

        Raises:
            SourceError: It is gone.
        """
        try:
            status = os.stat(self.path if self._entries[name] is not None else self.path / self.inside / name)
        except OSError as error:
            raise SourceError(f"{self.where(name)} cannot be read: {error}") from error
        parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return " ".join(map(str, parts)), max(status.st_mtime_ns, status.st_ctime_ns)

    def image(self, name: str) -> Image:
        """One image, (H, W, 3) uint8 BGR, turned upright by its EXIF orientation.

        Raises:
            SourceError: It cannot be read or decoded.
        """
        return decode_image(self.read(name), self.where(name))

    def text(self, name: str) -> str:
        """A text file, UTF-8.

        Raises:
            SourceError: It cannot be read, or is not UTF-8.
        """
        try:
            return self.read(name, max_bytes=MAX_TABLE_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.where(name)} is not UTF-8 text; save it as such (Excel: CSV UTF-8): {error}"
            ) from error

    def json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            SourceError: It cannot be read, or is not JSON.
        """
        try:
            return parse_json(self.text(name))
        except SchemaError as error:
            raise SourceError(f"{self.where(name)} is {error}") from error

    def table(self, name: str, columns: Collection[str]) -> list[dict[str, str]]:
        """The rows of a CSV file whose first line names its columns, without blanks around the values.

        Columns are separated by commas, semicolons or tabs: by what the first line has most of. Their names come in
        lower case.

        Args:
            name: The file.
            columns: Those that it must have; others may be there, too.

        Raises:
            SourceError: It cannot be read, lacks a column or any row, or a row has another number of columns.
        """
        text = self.text(name)
        first = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=first.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        try:
            header = [column.strip().casefold() for column in next(lines, [])]
            lacking = [column for column in columns if column not in header]
            if lacking or len(set(header)) != len(header):
                problem = f"no column {lacking[0]!r}" if lacking else "a column twice"
                raise SourceError(f"{self.where(name)} has {problem}; its columns are {', '.join(header)}")
            rows = []
            for fields in lines:
                if len(fields) == len(header):
                    rows.append(dict(zip(header, (field.strip() for field in fields), strict=True)))
                elif fields:  # a blank line has none
                    raise SourceError(
                        f"line {lines.line_num} of {self.where(name)} has {len(fields)} columns; "
                        f"its first line has {len(header)}"
                    )
        except csv.Error as error:
            raise SourceError(f"line {lines.line_num} of {self.where(name)}: {error}") from error
        if not rows:
            raise SourceError(f"{self.where(name)} has no rows")
        return rows

    def _read_file(self, name: str, max_bytes: int) -> bytes:
        path = self.path / self.inside / name
        if not path.is_file():  # gone since it was listed; or now a pipe, which would never end
            raise SourceError(f"{path} is not a file")
        with path.open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, max_bytes, str(path))
            return file.read()

    def _unpacked(self, packed: _Packed) -> Iterator[bytes]:
        """The blocks of a file in the zip."""
        size, checksum = 0, 0
        with self.path.open("rb") as file:
            self._seek(file, packed)
            stored = _blocks(file, packed.packed_bytes)
            for part in _inflated(stored) if packed.deflated else stored:
                size, checksum = size + len(part), zlib.crc32(part, checksum)
                if size > packed.size_bytes:
                    break
                yield part
        if size != packed.size_bytes or checksum != packed.checksum:
            raise ValueError("its checksum is wrong: the zip has changed or is damaged")

    def _seek(self, file: IO[bytes], packed: _Packed) -> None:
        """Move to the start of a file's data in the zip."""
        file.seek(packed.offset)
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size).ljust(30, b"\0"))
        if magic != b"PK\x03\x04":
            raise ValueError("the zip has changed or is damaged")
        file.seek(name_bytes + extra_bytes, os.SEEK_CUR)

    def _unpack(self, packed: _Packed) -> bytes:
        # zipfile would read the whole list of contents again for each image, or keep a file open that forked
        # processes would then share with its position.
        with self.path.open("rb") as file:
            self._seek(file, packed)
            data = file.read(packed.packed_bytes)
        if packed.deflated:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, packed.size_bytes + 1)
        if len(data) != packed.size_bytes or zlib.crc32(data) != packed.checksum:
            raise ValueError("its checksum is wrong: the zip has changed or is damaged")
        return data


def open_files(path: str | os.PathLike[str], *, inside: str = "", say_left_out: bool = True) -> Files:
    """List a folder (with the folders that it links to) or a zip.

    Args:
        path: The folder or zip.
        inside: A folder in it; names then start there.
        say_left_out: Whether to log the pictures that are left out.

    Raises:
        SourceError: There is no such folder or zip, it cannot be listed, holds no file there, or a zip holds a name
            that leads out of it, a name twice, an encrypted file, or one that is neither stored nor deflated.
        InputError: It holds more than :data:`runtime.images.folders.MAX_ENTRIES` files.

    Pictures that are left out are logged, as :mod:`runtime.images.folders` says.
    """
    path = Path(path)
    left_out: list[str] = []
    try:
        if path.is_dir():
            listed: Iterator[tuple[str, _Packed | None]] = _in_folder(path, left_out)
        elif path.is_file() and zipfile.is_zipfile(path):
            listed = _in_zip(path)
        else:
            problem = "is neither a folder nor a zip" if path.exists() else "does not exist"
            raise SourceError(f"the data {path} {problem}")
        prefix = f"{inside.strip('/')}/" if inside.strip("/") else ""
        entries: dict[str, _Packed | None] = {}
        for number, (name, packed) in enumerate(listed):
            if number >= MAX_ENTRIES:
                raise InputError(f"{path} holds more than {MAX_ENTRIES} files; name the folder of one data set")
            if name.startswith(prefix) and not is_hidden(name):
                entries[name[len(prefix) :]] = packed
    except EdgevisError:
        raise
    except ZIP_ERRORS as error:
        raise SourceError(f"{path} cannot be listed: {error}") from error
    if not entries:
        raise SourceError(f"{path} holds no files" + (f" in {prefix}" if prefix else ""))
    left_out += filter(None, (why_left_out(name) for name in entries))
    if say_left_out:
        warn_left_out(left_out, str(path))
    return Files(path, prefix, dict(sorted(entries.items())))


def by_stem(files: Files, folder: str) -> dict[str, str]:
    """The images of a folder by their path in it without the suffix.

    Raises:
        SourceError: There are none, or two differ only in their suffix.
    """
    paths: dict[str, str] = {}
    for name in images_of(files.below(folder)):
        stem = str(PurePosixPath(name).relative_to(folder).with_suffix(""))
        if stem in paths:
            raise SourceError(f"{files.path} has both {paths[stem]} and {name}; which of them is meant?")
        paths[stem] = name
    if not paths:
        raise SourceError(f"{files.path} has no images in {files.inside}{folder} ({', '.join(sorted(SUFFIXES))})")
    return paths


def _in_folder(folder: Path, left_out: list[str]) -> Iterator[tuple[str, None]]:
    for name, mode in files_below(folder):
        if mode is not None and stat.S_ISREG(mode):
            yield name, None
        elif (reason := why_left_out(name, mode)) is not None:
            left_out.append(reason)


def _in_zip(path: Path) -> Iterator[tuple[str, _Packed]]:
    size = path.stat().st_size
    seen = set()
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            name = item.filename
            parts = name.rstrip("/").split("/")
            if {"", ".", ".."} & set(parts) or re.match(r"[A-Za-z]:|.*\\", name) or not name.isprintable():
                raise SourceError(f"{path} holds the name {name!r}; names that could lead out of a zip are refused")
            if name in seen:
                raise SourceError(f"{path} holds {name} twice; which of them is meant?")
            seen.add(name)
            if item.is_dir():
                continue
            if item.flag_bits & _ENCRYPTED or item.compress_type not in _METHODS:
                raise SourceError(f"{name} in {path} is encrypted or packed by another method than stored or deflated")
            if item.header_offset + item.compress_size > size:
                raise SourceError(f"{path} is cut short: {name} would end behind it")
            deflated = item.compress_type == zipfile.ZIP_DEFLATED
            yield name, _Packed(item.header_offset, item.compress_size, item.file_size, deflated, item.CRC)


def _blocks(file: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    while size_bytes and (block := file.read(min(size_bytes, _BLOCK_BYTES))):
        size_bytes -= len(block)
        yield block


def _inflated(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The unpacked data, at most one block at a time whatever the packed data declare."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for block in blocks:
        while block:
            yield inflate.decompress(block, _BLOCK_BYTES)
            block = inflate.unconsumed_tail
    yield inflate.flush()


def _check_size(size: int, most: int, where: str) -> None:
    if size > most:
        raise SourceError(f"{where} has {size} bytes; at most {most} are read")
