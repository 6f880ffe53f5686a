"""The real images for INT8 calibration, engine verification and impostor scores.

They come from a folder or a zip of the user's, or, so that a build works on a machine with nothing on it, from the
photographs that scikit-image and Matplotlib carry in their wheels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from calibration.data.masks import central_object
from runtime.common.extras import install_command
from runtime.common.files import ZIP_ERRORS
from runtime.common.limits import max_file_bytes
from runtime.detection.average_precision import Objects
from runtime.errors import EdgevisError, InputError, MissingDependencyError, SourceError
from runtime.images.decode import SUFFIXES, Image, decode_image, read_image
from runtime.images.folders import MAX_ENTRIES, image_files, images_of, is_hidden, warn_left_out, why_left_out
from runtime.images.masks import Mask

# Half calibrate, half verify; of the latter half are queries, so that one changed decision is less than two per cent.
DEFAULT_COUNT = 256
MIN_COUNT = 16
MAX_VERIFICATION = 128

# Larger images are shrunk as they are read: 256 photographs of a telephone would not fit into memory.
MAX_SIDE = 1024

# Package, folder inside it, files. Colour and grey, persons, animals, objects, microscope and telescope.
_PHOTOGRAPHS = (
    (
        "skimage",
        "data",
        (
            "astronaut.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    ("matplotlib", "mpl-data/sample_data", ("grace_hopper.jpg",)),
)
# Its licence is not stated, so no crop of it is copied; of the others no copyright restrictions are known.
_NOT_COPIED = "motorcycle_left"
# Standard deviation of a crop's pixels. A piece of blank sky has less, and what a network makes of it is noise.
_MIN_CONTRAST = 30.0
_TRIES = 20
PHOTOGRAPHS_SOURCE = "crops of the photographs that the wheels of scikit-image and Matplotlib carry"


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Real images in a fixed order.

    Attributes:
        images: Each (H, W, 3) uint8 BGR, of its own size.
        labels: The label of each image; images of one label show the same.
        source: The origin of the images, without machine paths.
        digest: SHA-256 of all pixels, labels and masks.
        masks: A mask of an object in each image; empty where none were requested.
        objects: The annotated objects of each image, in its pixels, their classes those of the model; empty where the
            data have none.
    """

    images: tuple[Image, ...]
    labels: tuple[str, ...]
    source: str
    digest: str
    masks: tuple[Mask, ...] = ()
    objects: tuple[Objects, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> SampleSet:
        """The images of these positions, in this order."""
        chosen = list(indices)
        masks = [self.masks[i] for i in chosen] if self.masks else []
        objects = [self.objects[i] for i in chosen] if self.objects else []
        images, labels = [self.images[i] for i in chosen], [self.labels[i] for i in chosen]
        return sample_set(images, labels, self.source, masks, objects)

    def with_masks(self) -> SampleSet:
        """The same images with masks; missing ones come from :func:`calibration.data.masks.central_object`."""
        return (
            self
            if self.masks
            else sample_set(self.images, self.labels, self.source, [central_object(image) for image in self.images])
        )


def sample_set(
    images: Sequence[Image],
    labels: Sequence[str],
    source: str,
    masks: Sequence[Mask] = (),
    objects: Sequence[Objects] = (),
) -> SampleSet:
    """A :class:`SampleSet` with its digest, of which objects are no part: no range depends on them."""
    digest = hashlib.sha256()
    for image, label in zip(images, labels, strict=True):
        digest.update(f"{label}\0{image.shape}\0".encode())
        digest.update(np.ascontiguousarray(image).data)
    for mask in masks:
        digest.update(np.packbits(mask).data)
    return SampleSet(tuple(images), tuple(labels), source, digest.hexdigest(), tuple(masks), tuple(objects))


def samples_from(path: str | os.PathLike[str], *, count: int = DEFAULT_COUNT) -> SampleSet:
    """Up to ``count`` images of a folder (searched recursively) or a zip (read without unpacking it).

    The label of an image is the name of the folder it lies in. Of more than ``count`` images, every n-th in the order
    of their paths is taken, so that all labels are met. :mod:`runtime.images.folders` says which files are left out.

    Raises:
        SourceError: There is no such folder or zip, it holds no images, or one in it cannot be read; the message names
            it.
        InputError: It holds fewer than :data:`MIN_COUNT` images.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, count)
    if path.is_file() and zipfile.is_zipfile(path):
        return _from_zip(path, count)
    problem = "is neither a folder nor a zip" if path.exists() else "does not exist"
    raise SourceError(f"the calibration data {path} {problem}; allowed: a folder of images, or a .zip of them")


def samples_from_photographs(
    *, height: int, width: int, count: int = DEFAULT_COUNT, seed: int = 0, to_copy: bool = False
) -> SampleSet:
    """``count`` crops with changing light of the photographs in the wheels; the label is the photograph.

    Args:
        height, width: The model's input; crops have its proportions, so that a tall input gets tall crops.
        count: The number of crops.
        seed: The seed of the crops; the same seed gives the same ones.
        to_copy: Leave out the photograph whose licence is not stated, because the crops go into a bundle.

    Raises:
        MissingDependencyError: A package that carries them is not installed.
    """
    images_by_name = [(PurePosixPath(name).stem, image) for name, image in photographs().items()]
    if to_copy:
        images_by_name = [(name, image) for name, image in images_by_name if name != _NOT_COPIED]
    # random.Random.random() gives the same numbers in every version of Python; NumPy promises that for no generator.
    draw = random.Random(seed).random  # noqa: S311 - nothing secret is drawn
    images, labels = [], []
    for index in range(count):
        label, photograph = images_by_name[index % len(images_by_name)]
        images.append(_color_jitter(_crop(photograph, width / height, draw), draw))
        labels.append(label)
    return sample_set(images, labels, PHOTOGRAPHS_SOURCE)


def photographs(chosen: Collection[str] = ()) -> dict[str, Image]:
    """File name to photograph, those of the wheels, at most :data:`MAX_SIDE` pixels a side.

    Args:
        chosen: The file names; none stands for all.

    Raises:
        MissingDependencyError: A package that carries them is not installed.
    """
    paths = [path for path in _photograph_paths() if not chosen or path.name in chosen]
    return {path.name: shrunk_to_limit(read_image(path)) for path in paths}


def split(samples: SampleSet) -> tuple[SampleSet, SampleSet]:
    """The samples for calibration and those for verification, with no image in common.

    Half of them, at most :data:`MAX_VERIFICATION`, verify. The order is that of the images' hashes:
    it depends on nothing but the images, and neighbours in a folder or a video do not end up in one part.

    Raises:
        InputError: There are fewer than :data:`MIN_COUNT` different images.
    """
    keyed: dict[str, int] = {}
    for index, image in enumerate(samples.images):
        key = hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
        keyed.setdefault(key, index)
    order = [keyed[key] for key in sorted(keyed)]
    check_count(len(order), f"{samples.source} holds", "different images")
    middle = len(order) - min(len(order) // 2, MAX_VERIFICATION)
    return samples.subset(order[:middle]), samples.subset(order[middle:])


def _from_folder(folder: Path, count: int) -> SampleSet:
    names = _chosen([path.relative_to(folder).as_posix() for path in image_files(folder)], folder.name, count)
    return sample_set([shrunk_to_limit(read_image(folder / name)) for name in names], _labels(names), folder.name)


def _from_zip(path: Path, count: int) -> SampleSet:
    try:
        with zipfile.ZipFile(path) as archive:
            names = _chosen(_images_in_zip(archive, path), path.name, count)
            images = [shrunk_to_limit(_read_entry(archive, name, path)) for name in names]
    except EdgevisError:  # some are OSErrors or ValueErrors, too
        raise
    except ZIP_ERRORS as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    return sample_set(images, _labels(names), path.name)


def _read_entry(archive: zipfile.ZipFile, name: str, path: Path) -> Image:
    size = archive.getinfo(name).file_size
    most = max_file_bytes()
    if size > most:
        raise SourceError(f"{name} in {path} has {size} bytes; image files of at most {most} are read")
    try:
        data = archive.read(name)
    except ZIP_ERRORS as error:
        raise SourceError(f"{name} in {path} cannot be read: {error}") from error
    return decode_image(data, f"{name} in {path}")


def _images_in_zip(archive: zipfile.ZipFile, path: Path) -> list[str]:
    names = [item.filename for item in archive.infolist() if not item.is_dir() and not is_hidden(item.filename)]
    if len(names) > MAX_ENTRIES:
        raise InputError(f"{path} holds more than {MAX_ENTRIES} files; give a zip that holds only images")
    warn_left_out([reason for name in names if (reason := why_left_out(name))], str(path))
    return images_of(names)


def _chosen(paths: Iterable[str], source: str, count: int) -> list[str]:
    names = sorted(paths)
    check_count(len(names), f"{source} holds", f"images ({', '.join(sorted(SUFFIXES))})")
    if len(names) <= count:
        return names
    return [names[index * len(names) // count] for index in range(count)]


def check_count(count: int, source: str, what: str) -> None:
    """Raise InputError where there are too few images, ``what`` they are and where they are from."""
    if count < MIN_COUNT:
        raise InputError(
            f"{source} {count} {what}; at least {MIN_COUNT} are needed, half of them to calibrate, half to verify"
        )


def _labels(names: Sequence[str]) -> list[str]:
    return [PurePosixPath(name).parent.name for name in names]


def shrunk_to_limit(image: Image, side: int = MAX_SIDE) -> Image:
    """The image, shrunk to ``side`` pixels if one of its sides is larger."""
    ratio = side / max(image.shape[:2])
    if ratio >= 1:
        return image
    size = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _photograph_paths() -> list[Path]:
    paths = []
    for package, folder, names in _PHOTOGRAPHS:
        for name in names:
            path = wheel_file(package, f"{folder}/{name}")
            if path is None:
                raise MissingDependencyError(
                    f"the build measures itself on photographs that the package {package} carries, and {name} is not "
                    f"installed: {install_command('export')}, or give images with --calibration-data"
                )
            paths.append(path)
    return paths


def wheel_file(package: str, name: str) -> Path | None:
    """The path of a data file in an installed package, without importing it; None if it does not exist."""
    spec = importlib.util.find_spec(package)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / name
    return path if path is not None and path.is_file() else None


def _crop(image: Image, aspect: float, draw: Callable[[], float]) -> Image:
    """A random crop with some contrast, of the proportions ``aspect`` (width / height), mirrored half the time."""
    rows, columns = image.shape[:2]
    crop = image
    for _ in range(_TRIES):
        height = min(rows, columns / aspect) * (0.35 + 0.65 * draw())
        size_y, size_x = max(1, min(rows, round(height))), max(1, min(columns, round(height * aspect)))
        top, left = round((rows - size_y) * draw()), round((columns - size_x) * draw())
        crop = image[top : top + size_y, left : left + size_x]
        if crop.std() >= _MIN_CONTRAST:
            break
    return crop[:, ::-1] if draw() < 0.5 else crop


def _color_jitter(image: Image, draw: Callable[[], float]) -> Image:
    """The image with random brightness, contrast and colour temperature."""
    gamma, gain, warmth = 0.6 + draw(), 0.6 + 0.7 * draw(), 0.2 * draw() - 0.1
    pixel = np.arange(256) / 255.0
    tables = [np.clip(pixel**gamma * gain * tint * 255.0, 0, 255) for tint in (1 - warmth, 1.0, 1 + warmth)]
    table = np.stack(tables, axis=-1).round().astype(np.uint8)[None]
    return cv2.LUT(np.ascontiguousarray(image), table).astype(np.uint8, copy=False)
