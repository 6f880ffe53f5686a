"""The masks that an object is enrolled with: what is accepted, and the error of what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis import EnrolmentError, InputError, Predictor, SourceError

from bundles import enrolled_rows, installed
from segmentation_bundles import RED, scene, square

pytestmark = pytest.mark.skipif(not installed("onnx"), reason="onnx makes the graphs of these tests")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "give one mask for each image"),
        (square(8, 8)[:-1], "mask is \\(63, 96\\), its image \\(64, 96\\)"),
        (np.zeros((64, 96), bool), "marks nothing"),
        (square(8, 8) * 1.0, "bool or integers"),
        (square(8, 8).astype(np.uint8) + np.eye(64, 96, dtype=np.uint8), "has the values 0, 1, 2; say which"),
        ([square(8, 8)] * 2, "2 masks for 1 images"),
        ([], "0 masks for 1 images"),
        ("nowhere.png", "no image file nowhere.png"),
        (7, "is a int"),
        (np.stack([square(8, 8), square(8, 9), square(8, 8)], axis=-1), "holds colours"),
    ],
)
def test_bad_masks_are_refused_and_nothing_is_enrolled(few_shot: Path, masks: Any, message: str) -> None:
    with Predictor(few_shot) as predictor:
        with pytest.raises((InputError, SourceError), match=message):
            predictor.enroll("red", scene((RED, 8, 8)), masks=masks)
        assert predictor.labels == ()
        with pytest.raises(EnrolmentError, match="no object is enrolled; enrol at least one"):
            predictor.predict(scene())


def test_a_mask_too_small_for_the_model_says_so(few_shot: Path) -> None:
    """Of a 640 x 640 mask the model's 32 x 32 sees every twentieth pixel."""
    mask = np.zeros((640, 640), bool)
    mask[1, 1] = True
    with Predictor(few_shot) as predictor, pytest.raises(InputError, match="marks so little"):
        predictor.enroll("dot", np.zeros((640, 640, 3), np.uint8), masks=mask)


def test_masks_may_be_files_and_pil_images(few_shot: Path, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    mask = square(8, 8).astype(np.uint8) * 255
    assert cv2.imwrite(str(tmp_path / "mask.png"), mask)
    # Of a palette, the index counts: labelling tools show the object red, and the rest in no colour that is 0.
    palette = image_module.fromarray(square(8, 8).astype(np.uint8))
    palette.putpalette([9, 9, 9, 224, 0, 0])
    palette.save(tmp_path / "palette.png")
    forms = {
        "path": tmp_path / "mask.png",
        "palette": tmp_path / "palette.png",
        "pil": image_module.fromarray(mask),
        "pil palette": palette,
    }
    with Predictor(few_shot) as predictor:
        predictor.enroll("array", scene((RED, 8, 8)), masks=mask)
        for name, given in forms.items():
            predictor.enroll(name, scene((RED, 8, 8)), masks=given)
        rows = enrolled_rows(predictor)
    for name in forms:
        np.testing.assert_array_equal(rows[name], rows["array"], err_msg=name)


@pytest.mark.parametrize("form", ["path", "bytes", "PIL"])
def test_a_mask_of_a_photograph_that_exif_turns(few_shot: Path, tmp_path: Path, form: str) -> None:
    """The photograph and its mask are stored on their side; one has EXIF, and the size says that the other was not."""
    pil = pytest.importorskip("PIL.Image")
    upright, mask = scene((RED, 8, 30)), square(8, 30)
    photograph, mask_file, exif = tmp_path / "photo.png", tmp_path / "mask.png", pil.Exif()

    def given() -> Any:
        return {"path": lambda: photograph, "bytes": photograph.read_bytes, "PIL": lambda: pil.open(photograph)}[form]()

    exif[0x0112] = 6
    pil.fromarray(np.rot90(upright)[..., ::-1]).save(photograph, exif=exif)
    assert cv2.imwrite(str(mask_file), np.rot90(mask).astype(np.uint8) * 255)
    with Predictor(few_shot) as predictor:
        predictor.enroll("array", upright, masks=mask)
        predictor.enroll("stored", given(), masks=mask_file)
        predictor.enroll("several", [given(), upright], masks=[mask_file, mask])
        rows = enrolled_rows(predictor)
        np.testing.assert_array_equal(rows["stored"], rows["array"])
        np.testing.assert_array_equal(rows["several"], np.concatenate([rows["array"]] * 2))
        exif[0x0112] = 3
        pil.fromarray(np.rot90(upright, 2)[..., ::-1]).save(photograph, exif=exif)
        with pytest.raises(InputError, match="EXIF orientation 3, and their size does not say"):
            predictor.enroll("wrong", given(), masks=mask)
        assert "wrong" not in predictor.labels


def test_a_mask_with_colours_or_of_a_lossy_format_is_refused(few_shot: Path, tmp_path: Path) -> None:
    for name, content, message in (
        ("colour.png", scene((RED, 8, 8)), "holds colours"),
        ("mask.jpg", square(8, 8).astype(np.uint8) * 255, "is a JPEG, which does not keep"),
    ):
        assert cv2.imwrite(str(tmp_path / name), content)
        with Predictor(few_shot) as predictor, pytest.raises(SourceError, match=message):
            predictor.enroll("red", scene((RED, 8, 8)), masks=tmp_path / name)
