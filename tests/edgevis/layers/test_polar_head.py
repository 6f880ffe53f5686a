"""PolarMask's head, neck and code against the authors' values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgevis.layers.polar_code import decode_distances, decode_polygons, point_count, polar_points
from edgevis.layers.polar_head import PolarHead
from edgevis.layers.polar_neck import PolarNeck
from runtime.common.arrays import Array

from locations import GOLDEN_FOLDER
from recipe_weights import load_recipe_weights

pytestmark = pytest.mark.torch

PARAMETERS_OF_80_CLASSES = 7_362_947


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "polarmask.npz") as file:
        yield dict(file)


def test_the_head_gives_the_authors_maps(golden: dict[str, Array]) -> None:
    head = PolarHead(16, 3, repeats=2, groups=4)
    load_recipe_weights(head, seed=int(golden["seed"]), gain=1.2, prefix="bbox_head.")
    with torch.no_grad():
        for scales in ("scales_bbox", "scales_mask"):
            for level, value in enumerate(golden[f"head/{scales}"]):
                head.get_submodule(f"{scales}.{level}").get_parameter("scale").fill_(float(value))
        maps = head([torch.from_numpy(golden[f"head/in{level}"]) for level in range(5)])
    for name, outputs in (
        ("class", maps.classes),
        ("box", maps.boxes),
        ("centerness", maps.centerness),
        ("rays", maps.rays),
    ):
        for level, x in enumerate(outputs):
            expected = golden[f"head/{name}{level}"]
            assert x.shape == expected.shape
            assert np.abs(x.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_published_head_has_its_names_and_parameters() -> None:
    with torch.device("meta"):
        head = PolarHead(256, 80)
    assert sum(x.numel() for x in head.parameters()) == PARAMETERS_OF_80_CLASSES
    towers = {f"{tower}.{i}.{part}" for tower in ("cls_convs", "reg_convs", "mask_convs") for i in range(4)
              for part in ("conv.weight", "gn.weight", "gn.bias")}  # fmt: skip
    predictors = {
        f"polar_{kind}.{part}" for kind in ("cls", "reg", "mask", "centerness") for part in ("weight", "bias")
    }
    scales = {f"{kind}.{level}.scale" for kind in ("scales_bbox", "scales_mask") for level in range(5)}
    assert set(head.state_dict()) == towers | predictors | scales


def test_the_neck_halves_twice_more_and_bends_before_the_last() -> None:
    torch.manual_seed(0)
    neck = PolarNeck((4, 6, 8), channels=5)
    maps = [torch.randn(1, width, 8 // 2**level, 12 // 2**level) for level, width in enumerate((4, 6, 8))]
    with torch.no_grad():
        outputs = neck(maps)
        sixth, seventh = neck.fpn_convs[3](outputs[2]), neck.fpn_convs[4](outputs[3].relu())
    assert [tuple(x.shape[1:]) for x in outputs] == [(5, 8, 12), (5, 4, 6), (5, 2, 3), (5, 1, 2), (5, 1, 1)]
    torch.testing.assert_close(outputs[3], sixth)
    torch.testing.assert_close(outputs[4], seventh)
    assert {name.rpartition(".")[0] for name in neck.state_dict()} == {
        *(f"lateral_convs.{i}.conv" for i in range(3)),
        *(f"fpn_convs.{i}.conv" for i in range(5)),
    }


def test_polygons_are_decoded_as_the_authors_do_and_hold_the_pixels_of_the_outline(golden: dict[str, Array]) -> None:
    # The authors count from the middle of the first pixel, and their vertices are the middles of pixels.
    height, width = (int(side) for side in golden["target/height_width"])
    points, rays = torch.from_numpy(golden["decode/xy"]), torch.from_numpy(golden["loss/pred_rays"])
    polygons = decode_polygons(points - 0.5, rays - 0.5, size=(height - 1, width - 1))
    expected = golden["decode/polygon_xy"].transpose(0, 2, 1)
    assert np.abs(polygons.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
    alone = decode_polygons(torch.tensor([[4.0, 12.0]]), torch.zeros(1, 36), size=(16, 16))
    assert alone.amin((0, 1)).tolist() == pytest.approx([4, 12])
    assert alone.amax((0, 1)).tolist() == pytest.approx([5, 13])


def test_points_lie_in_the_middle_of_their_cells(golden: dict[str, Array]) -> None:
    points, strides = polar_points((256, 384))
    assert len(points) == point_count((256, 384)) == int(golden["target/points_per_level"].sum())
    chosen = golden["target/positive_points"]
    np.testing.assert_array_equal(points[chosen].numpy(), golden["target/positive_xy"])
    assert [int((strides == stride).sum()) for stride in (8, 16, 32, 64, 128)] == [1536, 384, 96, 24, 6]


def test_boxes_end_behind_their_last_pixel() -> None:
    boxes = decode_distances(torch.tensor([[4.0, 12.0]]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    assert boxes.tolist() == [[[3.0, 10.0, 8.0, 17.0]]]
