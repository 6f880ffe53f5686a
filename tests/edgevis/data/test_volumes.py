"""NIfTI volumes, made here with nibabel, cut into slices."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgevis.data import read_volumes, volumes
from runtime.errors import InputError, SourceError

nibabel = pytest.importorskip("nibabel")

SHAPE = (5, 4, 3)
VALUES = np.arange(60, dtype=np.int16).reshape(SHAPE)
LABEL = (VALUES % 7 == 0).astype(np.uint8) * 2
SPACING = np.diag([0.5, 1.5, 3.0, 1.0])


def _save(path: Path, values: np.ndarray, affine: np.ndarray = SPACING, kind: type | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save((kind or nibabel.Nifti1Image)(values, affine), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    _save(tmp_path / "imagesTr" / "v_001.nii.gz", VALUES)
    _save(tmp_path / "labelsTr" / "v_001.nii.gz", LABEL)
    (tmp_path / "imagesTr" / "._v_001.nii.gz").write_bytes(b"what a Mac leaves in an archive")
    return tmp_path


def test_axial_slices_show_anterior_up(data: Path) -> None:
    found = read_volumes(data, window=(0, 255))
    assert (found.names, len(found)) == (("v_001",), 1)
    volume = found[0]
    assert volume.image.shape == volume.label.shape == (3, 4, 5)
    for number in range(3):
        np.testing.assert_array_equal(volume.image[number], np.rot90(VALUES[:, :, number]))
        np.testing.assert_array_equal(volume.label[number], np.rot90(LABEL[:, :, number]))
    assert volume.spacing_mm == (3.0, 1.5, 0.5)
    assert volume.image.dtype == volume.label.dtype == np.uint8


@pytest.mark.parametrize(("plane", "axis"), [("coronal", 1), ("sagittal", 0)])
def test_other_planes_show_superior_up(data: Path, plane: str, axis: int) -> None:
    volume = read_volumes(data, window=(0, 255), plane=plane)[0]  # type: ignore[arg-type]
    for number in range(SHAPE[axis]):
        np.testing.assert_array_equal(volume.image[number], np.rot90(np.take(VALUES, number, axis)))


@pytest.mark.parametrize(
    "other",
    [
        np.diag([-0.5, -1.5, 3.0, 1.0]),
        np.eye(4),
        np.diag([0.5, 1.5, 3.1, 1.0]),
        SPACING + np.array([[0, 0, 0, 50.0], [0] * 4, [0] * 4, [0] * 4]),
        SPACING @ np.array([[0, 0, 1.0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
    ],
    ids=["mirrored", "no spacing", "other spacing", "moved", "swapped axes"],
)
def test_a_label_that_lies_elsewhere_is_refused(data: Path, other: np.ndarray) -> None:
    values = np.arange(64, dtype=np.int16).reshape(4, 4, 4)  # a cube: swapped axes keep its shape
    _save(data / "imagesTr" / "v_001.nii.gz", values)
    _save(data / "labelsTr" / "v_001.nii.gz", (values > 9).astype(np.uint8), other)
    with pytest.raises(SourceError, match=r"labelsTr/v_001\.nii\.gz .*mm: their affines differ; resample the label"):
        read_volumes(data)[0]


def test_rounding_of_an_affine_is_no_other_place(data: Path) -> None:
    _save(data / "labelsTr" / "v_001.nii.gz", LABEL, SPACING * (1 + 1e-5))
    assert read_volumes(data)[0].label is not None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_stored_orientation_and_format_do_not_matter(data: Path, tmp_path: Path, suffix: str, kind: type) -> None:
    """The same patient, stored with flipped and swapped axes, in the other format."""
    turned = np.flip(VALUES, 0).transpose(1, 0, 2)
    affine = np.array([[0, -0.5, 0, 2.0], [1.5, 0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    _save(tmp_path / "other" / f"x{suffix}", turned, affine, kind)
    expected, found = (
        read_volumes(data, images=folder, labels=None, window=(0, 255))[0] for folder in ("imagesTr", "other")
    )
    np.testing.assert_array_equal(found.image, expected.image)
    assert found.spacing_mm == expected.spacing_mm


def test_windows(data: Path) -> None:
    def levels(window: tuple[float, float] | None) -> np.ndarray:
        return np.sort(read_volumes(data, window=window)[0].image.ravel())

    np.testing.assert_array_equal(levels((10, 20))[[9, 10, 15, 20, 59]], [0, 0, 128, 255, 255])
    # 0.5 and 99.5 per cent of 0 .. 59 are 0.295 and 58.705.
    expected = np.clip(np.rint((np.arange(60) - 0.295) / (58.705 - 0.295) * 255), 0, 255)
    np.testing.assert_array_equal(levels(None), expected)


def test_scaled_floating_point_and_flat_volumes(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES, SPACING)
    image.header.set_slope_inter(2.0, -20.0)
    (tmp_path / "imagesTr").mkdir()
    nibabel.save(image, tmp_path / "imagesTr" / "a.nii")
    _save(tmp_path / "imagesTr" / "b.nii", VALUES.astype(np.float32))
    _save(tmp_path / "imagesTr" / "c.nii", np.full(SHAPE, 7.0))
    scaled, floats, flat = read_volumes(tmp_path, labels=None, window=(0, 255))
    stored = np.asarray(nibabel.load(tmp_path / "imagesTr" / "a.nii").dataobj)
    np.testing.assert_array_equal(scaled.image[0], np.clip(np.rot90(stored[:, :, 0]), 0, 255))
    np.testing.assert_array_equal(floats.image[0], np.rot90(VALUES[:, :, 0]))
    assert not read_volumes(tmp_path, labels=None)[2].image.any()
    assert (flat.image == 7).all()


def test_channels(tmp_path: Path) -> None:
    _save(tmp_path / "imagesTr" / "a.nii.gz", np.stack([VALUES, VALUES + 100], axis=-1))
    found = read_volumes(tmp_path, labels=None, window=(0, 255), channel=1)[0]
    np.testing.assert_array_equal(found.image[0], np.rot90(VALUES[:, :, 0] + 100))
    with pytest.raises(SourceError, match=r"axes \(5, 4, 3, 2\); allowed: three, or four with more than 2 channels"):
        read_volumes(tmp_path, labels=None, channel=2)[0]


def test_slices_of_a_zip(data: Path) -> None:
    _save(data / "imagesTr" / "v_000.nii.gz", VALUES)
    only_last = np.zeros(SHAPE, np.uint8)
    only_last[0, 0, 2] = 1
    _save(data / "labelsTr" / "v_000.nii.gz", only_last)
    with zipfile.ZipFile(data / "all.zip", "w") as archive:
        for path in sorted(data.rglob("*.nii.gz")):
            archive.write(path, f"Task04/{path.relative_to(data)}")
    found = read_volumes(data / "all.zip", inside="Task04")
    everything = list(found.slices())
    assert [(item.volume, item.number) for item in everything] == [(f"v_00{v}", n) for v in (0, 1) for n in range(3)]
    assert everything[4].image.shape == (4, 5, 3)
    np.testing.assert_array_equal(everything[4].image[..., 2], found[1].image[1])
    np.testing.assert_array_equal(everything[4].label, found[1].label[1])
    labelled = [(item.volume, item.number) for item in found.slices(min_label_pixels=1)]
    assert labelled == [("v_000", 2), ("v_001", 0), ("v_001", 1), ("v_001", 2)]


def test_what_is_missing(data: Path) -> None:
    with pytest.raises(SourceError, match="no folder imagesTs"):
        read_volumes(data, images="imagesTs")
    _save(data / "imagesTr" / "v_002.nii", VALUES)
    with pytest.raises(SourceError, match=r"no labelsTr/v_002\.nii\.gz"):
        read_volumes(data)
    _save(data / "imagesTr" / "v_002.nii.gz", VALUES)
    with pytest.raises(SourceError, match=r"both imagesTr/v_002\.nii and imagesTr/v_002\.nii\.gz"):
        read_volumes(data)
    (data / "text").mkdir()
    (data / "text" / "a.txt").touch()
    with pytest.raises(SourceError, match="no volumes in text"):
        read_volumes(data, images="text", labels=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(VALUES == 3, np.nan, VALUES).astype(np.float32), "holds NaN or infinity"),
        (np.where(VALUES == 3, np.inf, VALUES).astype(np.float32), "holds NaN or infinity"),
        (VALUES[..., 0], r"has the axes \(5, 4\)"),
        (VALUES.astype(np.complex64), "no real numbers"),
    ],
)
def test_wrong_volumes(tmp_path: Path, values: np.ndarray, message: str) -> None:
    _save(tmp_path / "imagesTr" / "a.nii.gz", values)
    with pytest.raises(SourceError, match=rf"imagesTr/a\.nii\.gz in .*{message}"):
        read_volumes(tmp_path, labels=None)[0]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (LABEL[:, :, :2], r"its label \(2, 4, 5\)"),
        (LABEL.astype(np.int16) * 200, "values from 0 to 400"),
        (LABEL.astype(np.int16) - 1, "values from -1 to 1"),
        (LABEL.astype(np.float32) / 4, "class ids are 0 to 255"),
    ],
)
def test_wrong_labels(data: Path, label: np.ndarray, message: str) -> None:
    _save(data / "labelsTr" / "v_001.nii.gz", label)
    with pytest.raises(SourceError, match=message):
        read_volumes(data)[0]


def test_damaged_and_hostile_volumes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / "imagesTr" / "v_001.nii.gz"
    packed = path.read_bytes()
    whole = gzip.decompress(packed)
    huge = bytearray(whole)
    huge[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    negative = bytearray(whole)
    negative[42:44] = np.array([-5], "<i2").tobytes()
    unknown = bytearray(whole)
    unknown[70:72] = np.array([9999], "<i2").tobytes()
    for content, message in (
        (packed[:-20], "is damaged"),
        (gzip.compress(whole[:-1]), "cannot be read: .* damaged"),
        (gzip.compress(huge), "cut short"),
        (gzip.compress(negative), "has the axes"),
        (gzip.compress(unknown), "is damaged"),
        (gzip.compress(whole[:200]), "is damaged"),
        (b"no volume", "not a NIfTI file"),
        (b"", "not a NIfTI file"),
    ):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=f"(?s){message}"):
            read_volumes(data)[0]
    path.write_bytes(packed)
    monkeypatch.setattr(volumes, "MAX_VOLUME_BYTES", len(whole) - 1)
    with pytest.raises(SourceError, match="unpacks to more than"):
        read_volumes(data)[0]


def test_wrong_arguments(data: Path) -> None:
    with pytest.raises(InputError, match="plane is 'oblique'"):
        read_volumes(data, plane="oblique")  # type: ignore[arg-type]
    for window in ((1.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(InputError, match="the first one smaller"):
            read_volumes(data, window=window)
    with pytest.raises(InputError, match="channel is -1"):
        read_volumes(data, channel=-1)
    with pytest.raises(InputError, match="needs labels"):
        read_volumes(data, labels=None).slices(min_label_pixels=1)
    with pytest.raises(InputError, match="min_label_pixels is -1"):
        read_volumes(data).slices(min_label_pixels=-1)
