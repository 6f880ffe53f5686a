"""Volumes of NIfTI files, cut into the 2-D slices that networks for images see.

Layout: the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 2022): ``imagesTr/NAME.nii.gz`` and
``labelsTr/NAME.nii.gz``. Provenance: our own code on nibabel. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import gzip
import io
import itertools
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.checks import at_least
from edgevis.data.files import Files, open_files
from runtime.common.extras import install_command
from runtime.errors import InputError, MissingDependencyError, SourceError
from runtime.images.decode import Image

MAX_VOLUME_BYTES = 2 << 30
"""The largest unpacked size of a file."""

PERCENTILES = (0.5, 99.5)
"""The percentiles that become black and white if no window is given: MR intensities have no unit."""

Plane = Literal["axial", "coronal", "sagittal"]

_SUFFIXES = (".nii", ".nii.gz")
# The axis of a volume in the order right, anterior, superior that a plane's slices follow.
_AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
# Of a voxel's shortest side: more than the rounding of float32 affines and of quaternions over a whole volume.
_APART = 0.1
_HEADER_BYTES = (348, 540)


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """D slices of one volume, seen as on a screen: anterior (axial) or superior is up, the patient's left is left.

    Attributes:
        name: The file's name without its suffix.
        image: (D, H, W) uint8 grey.
        label: (D, H, W) uint8 class ids; None where there are none.
        spacing_mm: Distances of neighbouring slices, rows and columns.
    """

    name: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One slice.

    Attributes:
        volume: The volume's name; a Dice of volumes groups slices by it.
        number: Its place in the volume, from 0.
        image: (H, W, 3) uint8 BGR, all channels equal.
        label: (H, W) uint8 class ids; None where there are none.
    """

    volume: str
    number: int
    image: Image
    label: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True, eq=False)
class Volumes:
    """Paths of volumes and of their labels; a volume is read when asked for. May serve as a PyTorch data set.

    Attributes:
        files: Where they lie.
        names: N names, without folder and suffix.
        images: N paths.
        labels: N paths; None where there are none.
        plane: How volumes are cut.
        window: The intensities that become black and white; None for :data:`PERCENTILES` of each volume.
        channel: Which volume of a file that holds several (MR sequences).
    """

    files: Files
    names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...] | None
    plane: Plane
    window: tuple[float, float] | None
    channel: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Volume:
        """One volume.

        Raises:
            SourceError: It is damaged, no NIfTI, too large, has another number of axes than 3 or 4 or not that
                channel, holds NaN or infinity, or its label is of another size, lies elsewhere in space or holds
                something else than 0 to 255.
            MissingDependencyError: nibabel is not installed.
        """
        intensities, spacing, corners = self._read(self.images[index], self.channel)
        label = None
        if self.labels is not None:
            values, _, label_corners = self._read(self.labels[index], 0)
            label = _class_ids(values, self.files.where(self.labels[index]))
            if label.shape != intensities.shape:
                raise SourceError(
                    f"{self.files.where(self.images[index])} has {intensities.shape} slices, rows and columns, "
                    f"its label {label.shape}; they must be equally large"
                )
            distance_mm = float(np.linalg.norm(corners - label_corners, axis=1).max())
            if not distance_mm <= _APART * min(spacing):  # an affine may hold NaN
                raise SourceError(
                    f"{self.files.where(self.labels[index])} lies up to {distance_mm:.3g} mm from its image, whose "
                    f"voxels are {min(spacing):.3g} mm: their affines differ; resample the label to its image's grid, "
                    "or correct its header"
                )
        return Volume(self.names[index], _windowed(intensities, self.window), label, spacing)

    def slices(self, *, min_label_pixels: int = 0) -> Iterator[Slice]:
        """The slices of all volumes, one volume in memory at a time.

        A compressed volume can only be unpacked as a whole: to visit slices in random order, keep them in a list.

        Args:
            min_label_pixels: Only slices with this many pixels of any class.

        Raises:
            InputError: ``min_label_pixels`` where there are no labels.
            SourceError: As of a volume.
        """
        if at_least("min_label_pixels", min_label_pixels, 0) and self.labels is None:
            raise InputError("min_label_pixels needs labels, and there are none")
        return self._slices(min_label_pixels)

    def _slices(self, min_label_pixels: int) -> Iterator[Slice]:
        for index in range(len(self)):
            volume = self[index]
            for number, grey in enumerate(volume.image):
                label = None if volume.label is None else volume.label[number]
                if label is None or np.count_nonzero(label) >= min_label_pixels:
                    yield Slice(volume.name, number, cv2.merge([grey, grey, grey]).astype(np.uint8, copy=False), label)

    def _read(self, name: str, channel: int) -> tuple[NDArray[Any], tuple[float, float, float], NDArray[np.float64]]:
        """The values in the order of the plane, the distances of slices, rows and columns, and the volume's corners."""
        where = self.files.where(name)
        data = _unpacked(self.files.read(name, max_bytes=MAX_VOLUME_BYTES), where)
        values, zooms, corners = _values(data, channel, where)
        axis = _AXES[self.plane]
        # (slices, rows, columns): rows run against the later, columns along the earlier of the other two axes.
        across, up = (other for other in range(3) if other != axis)
        turned = np.flip(values.transpose(axis, up, across), 1)
        return turned, (zooms[axis], zooms[up], zooms[across]), corners


def read_volumes(
    path: str | os.PathLike[str],
    *,
    images: str = "imagesTr",
    labels: str | None = "labelsTr",
    plane: Plane = "axial",
    window: tuple[float, float] | None = None,
    channel: int = 0,
    inside: str = "",
) -> Volumes:
    """The volumes ``imagesTr/NAME.nii(.gz)`` with ``labelsTr/NAME.nii(.gz)``, sorted by name; no volume is read yet.

    Args:
        path: A folder or zip.
        images, labels: The folders; None where there are no labels.
        plane: How to cut them.
        window: The intensities that become 0 and 255, such as (-160, 240) Hounsfield units for CT of soft tissue; None
            for :data:`PERCENTILES` of each volume.
        channel: Which volume of files that hold several.
        inside: The folder in ``path`` that they lie in.

    Raises:
        InputError: An argument is out of range.
        SourceError: There is no such folder or zip, it holds no volumes, or one has no label.
    """
    if plane not in _AXES:
        raise InputError(f"plane is {plane!r}; allowed: {', '.join(_AXES)}")
    if window is not None and not _is_window(window):
        raise InputError(f"window is {window!r}; allowed: two numbers, the first one smaller")
    at_least("channel", channel, 0)
    files = open_files(path, inside=inside)
    paths = _by_name(files, images)
    if not paths:
        raise SourceError(f"{files.path} has no volumes in {files.inside}{images} ({', '.join(_SUFFIXES)})")
    paired = None
    if labels is not None:
        drawn = _by_name(files, labels)
        for name in paths:
            if name not in drawn:
                raise SourceError(
                    f"{files.path} has no {files.inside}{labels}/{name}.nii.gz, the label of {paths[name]}"
                )
        paired = tuple(drawn[name] for name in paths)
    return Volumes(files, tuple(paths), tuple(paths.values()), paired, plane, window, channel)


def _is_window(window: object) -> bool:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        return False
    if not all(isinstance(bound, (int, float)) and not isinstance(bound, bool) for bound in window):
        return False
    return all(map(math.isfinite, window)) and bool(window[0] < window[1])


def _by_name(files: Files, folder: str) -> dict[str, str]:
    paths: dict[str, str] = {}
    for path in files.below(folder):
        if path.lower().endswith(_SUFFIXES):
            name = path[len(folder) + 1 :].partition(".nii")[0]
            if name in paths:
                raise SourceError(f"{files.path} has both {paths[name]} and {path}; which of them is meant?")
            paths[name] = path
    return paths


def _unpacked(data: bytes, where: str) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(MAX_VOLUME_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{where} is damaged: {error}") from error
    if len(unpacked) > MAX_VOLUME_BYTES:
        raise SourceError(f"{where} unpacks to more than {MAX_VOLUME_BYTES} bytes")
    return unpacked


def _values(data: bytes, channel: int, where: str) -> tuple[NDArray[Any], tuple[float, ...], NDArray[np.float64]]:
    """The scaled values, (X, Y, Z) with the axes right, anterior, superior, a voxel's sizes in mm, and where the
    eight corners of the stored array lie, (8, 3) in mm.
    """
    try:
        import nibabel
    except ImportError as error:
        raise MissingDependencyError(f"volumes are read by nibabel: {install_command('train')}") from error
    sizes = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    if not sizes & set(_HEADER_BYTES):
        raise SourceError(f"{where} is not a NIfTI file")
    kind = nibabel.Nifti1Image if _HEADER_BYTES[0] in sizes else nibabel.Nifti2Image
    try:
        file = kind.from_bytes(data)
        shape, stored = tuple(int(side) for side in file.shape), file.get_data_dtype()
    except Exception as error:  # nibabel raises a dozen classes for a damaged header
        raise SourceError(f"{where} is damaged: {error}") from error
    if len(shape) not in (3, 4) or min(shape) < 1 or (len(shape) == 4 and channel >= shape[3]):
        raise SourceError(f"{where} has the axes {shape}; allowed: three, or four with more than {channel} channels")
    # The header says what is allocated.
    if stored.kind not in "iuf" or math.prod(shape) * stored.itemsize > len(data):
        raise SourceError(f"{where} is cut short, or its values of type {stored} are no real numbers")
    try:
        volume = file.slicer[..., channel] if len(shape) == 4 else file
        upright = nibabel.as_closest_canonical(volume)
        values = np.asarray(upright.dataobj)
        zooms = tuple(float(zoom) for zoom in upright.header.get_zooms()[:3])
        ends = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in shape[:3]))])
        corners = (ends @ np.asarray(file.affine, np.float64).T)[:, :3]
    except Exception as error:  # as above
        raise SourceError(f"{where} cannot be read: {error}") from error
    if not np.isfinite(values).all():
        raise SourceError(f"{where} holds NaN or infinity")
    return values, zooms, corners


def _windowed(values: NDArray[Any], window: tuple[float, float] | None) -> NDArray[np.uint8]:
    low, high = window or (float(bound) for bound in np.percentile(values, PERCENTILES))
    # A volume of one value has no contrast to stretch: it is black.
    scale = 255.0 / (high - low) if high > low else 0.0
    levels: NDArray[np.float32] = (values.astype(np.float32) - np.float32(low)) * np.float32(scale)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _class_ids(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise SourceError(f"{where} holds values from {values.min()} to {values.max()}; class ids are 0 to 255")
    ids: NDArray[np.uint8] = values.astype(np.uint8)
    return ids
