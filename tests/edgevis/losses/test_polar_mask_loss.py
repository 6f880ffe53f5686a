"""PolarMask's losses against the authors' values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgevis.data.polar_targets import BACKGROUND, COLUMNS, IGNORED
from edgevis.losses import PolarMaskLoss, polar_centerness, polar_iou_loss
from edgevis.losses.polar_mask import distance_iou_loss
from runtime.common.arrays import Array
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "polarmask.npz") as file:
        yield {name: file[name] for name in file.files if name.startswith("loss/")}


@pytest.mark.parametrize("weighted", [True, False])
def test_polar_iou_has_the_authors_value_and_gradient(golden: dict[str, Array], weighted: bool) -> None:
    name = "weighted" if weighted else "ones"
    rays = torch.from_numpy(golden["loss/pred_rays"]).requires_grad_()
    weights = torch.from_numpy(golden["loss/centerness_target"])
    loss = polar_iou_loss(
        rays, torch.from_numpy(golden["loss/target_rays"]), weights if weighted else torch.ones_like(weights)
    )
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[f"loss/{name}"]), rel=1e-5)
    expected = golden[f"loss/{name}_grad"]
    assert rays.grad is not None
    assert np.abs(rays.grad.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_centerness_is_the_root_of_the_shortest_over_the_longest_ray(golden: dict[str, Array]) -> None:
    actual = polar_centerness(torch.from_numpy(golden["loss/target_rays"]))
    np.testing.assert_allclose(actual.numpy(), golden["loss/centerness_target"], rtol=1e-4)


def test_boxes_are_compared_with_their_last_pixels() -> None:
    # 4 x 4 pixels of a box of 4 x 6: an overlap of 16 / 24.
    loss = distance_iou_loss(torch.tensor([[1.0, 1.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 2.0, 4.0]]), torch.ones(1))
    assert loss.item() == pytest.approx(np.log(24 / 16))


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two images with three points and two classes; one point of each image learns, the second is ignored."""
    torch.manual_seed(0)
    targets = torch.zeros(2, 3, COLUMNS)
    targets[..., 0] = BACKGROUND
    targets[:, 1, 0] = IGNORED
    targets[:, 0, 0] = torch.tensor([0.0, 1.0])
    targets[:, 0, 1:] = 5.0 + torch.rand(2, COLUMNS - 1)
    rows = torch.cat([1 + 9 * torch.rand(2, 3, COLUMNS - 1), torch.randn(2, 3, 3)], dim=2)
    return rows.requires_grad_(), targets


def test_what_is_right_costs_little_and_what_is_ignored_nothing() -> None:
    rows, targets = scene()
    terms = PolarMaskLoss()(rows, targets)
    assert list(terms) == ["class", "box", "rays", "centerness"]
    sum(terms.values(), torch.zeros(())).backward()
    assert rows.grad is not None
    assert not rows.grad[:, 1].any()
    assert not rows.grad[:, 2, :COLUMNS].any()
    right = torch.cat([targets[..., 1:], torch.full((2, 3, 3), -20.0)], dim=2)
    right[0, 0, COLUMNS], right[1, 0, COLUMNS + 1] = 20.0, 20.0
    best = PolarMaskLoss()(right, targets)
    assert max(float(best[name].detach()) for name in ("class", "box", "rays")) < 1e-6


def test_an_image_without_objects_teaches_classes_alone() -> None:
    rows, targets = scene()
    targets[:] = 0
    targets[..., 0] = BACKGROUND
    terms = {name: float(value.detach()) for name, value in PolarMaskLoss()(rows, targets).items()}
    assert terms["class"] > 0
    assert terms["box"] == terms["rays"] == terms["centerness"] == 0


def test_shapes_and_classes_that_do_not_fit_are_refused() -> None:
    rows, targets = scene()
    with pytest.raises(InputError, match="rows have shape"):
        PolarMaskLoss()(rows, targets[..., 1:])
    targets[0, 0, 0] = 2
    with pytest.raises(InputError, match="class 2; allowed: below 2"):
        PolarMaskLoss()(rows, targets)
