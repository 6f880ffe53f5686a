"""How several shots decide together, against the reference values of few-shot segmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime.errors import InputError
from runtime.images.resize import resize_aligned
from runtime.tasks.few_shot_segment import aggregate_votes

from locations import GOLDEN_FOLDER

GOLDEN = np.load(GOLDEN_FOLDER / "05_kshot.npz")
CASES = sorted({name.split(".")[0] for name in GOLDEN})


@pytest.mark.parametrize("case", CASES)
def test_votes_are_the_official_ones(case: str) -> None:
    logits = GOLDEN[f"{case}.logits"]
    height, width = (int(side) for side in GOLDEN[f"{case}.orig_hw"])
    size = None if height < 0 else (height, width)
    found = aggregate_votes(logits, size)
    wanted = GOLDEN[f"{case}.pred"].astype(bool)
    clear = np.ones(wanted.shape, bool)
    if size is not None:
        resized = F.interpolate(
            torch.from_numpy(logits).flatten(0, 1), size=size, mode="bilinear", align_corners=True
        ).unflatten(0, logits.shape[:2])
        clear = ((resized[:, :, 1] - resized[:, :, 0]).abs() >= 1e-4).all(dim=0).numpy()
        assert clear.mean() > 0.95
    assert found.dtype == np.bool_
    assert wanted.any() or not found.any()
    np.testing.assert_array_equal(found[clear], wanted[clear])


def test_all_cases_of_the_file_are_run() -> None:
    assert len(CASES) == 8


@pytest.mark.parametrize(
    ("old", "new"), [((5, 7), (11, 3)), ((1, 4), (6, 4)), ((3, 1), (2, 5)), ((4, 4), (1, 1)), ((9, 9), (417, 300))]
)
def test_resizing_is_pytorch_s_with_aligned_corners(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).standard_normal((2, 3, *old)).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(maps), size=new, mode="bilinear", align_corners=True).numpy()
    found = resize_aligned(maps, new)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_ties_are_background_and_an_image_without_a_vote_stays_empty() -> None:
    logits = np.zeros((3, 2, 2, 4, 4), np.float32)
    logits[:2, 1, 1, 0, 0] = 1.0
    found = aggregate_votes(logits)
    assert not found[0].any()
    assert found[1].sum() == 1
    assert found[1, 0, 0]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 2, 4, 4), None),
        ((0, 1, 2, 4, 4), None),
        ((1, 1, 3, 4, 4), None),
        ((1, 1, 2, 4, 0), None),
        ((1, 1, 2, 4, 4), (0, 4)),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    with pytest.raises(InputError, match="allowed"):
        aggregate_votes(np.zeros(shape, np.float32), size)
