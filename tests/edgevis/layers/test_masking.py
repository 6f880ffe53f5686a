"""The five ways in which a support mask enters the features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgevis.layers.masking import Masking, mask_maps, masked_pyramid
from runtime.errors import InputError, ModelError

# One map of 2 x 2 places on a 3 x 3 mask, corners aligned: the mask is read at its four corners.
FEATURE = torch.tensor([[1.0, -2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
MASKED_IMAGE = torch.tensor([[10.0, 20.0], [-30.0, 0.0]]).reshape(1, 1, 2, 2)
MASK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[None]


@pytest.mark.parametrize(
    ("masking", "expected"),
    [
        ("fm", [1.0, -2.0, 3.0, 0.0]),
        ("im", [10.0, 20.0, -30.0, 0.0]),
        ("hm", [1.0, 20.0, 3.0, 0.0]),
        ("add", [11.0, 18.0, -27.0, 0.0]),
        ("reverse", [10.0, 20.0, 3.0, 0.0]),
    ],
)
def test_by_hand(masking: Masking, expected: list[float]) -> None:
    ((found,),) = mask_maps([[FEATURE]], [[MASKED_IMAGE]], MASK, masking=masking)
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize(("masking", "passes"), [("fm", 2), ("im", 2), ("hm", 4), ("add", 4), ("reverse", 4)])
def test_the_backbone_sees_what_the_kind_needs(masking: Masking, passes: int) -> None:
    seen: list[Tensor] = []

    def extract(image: Tensor) -> list[list[Tensor]]:
        seen.append(image)
        return [[image[:, :1], image[:, 1:2] * 2], [image[:, :2, ::2, ::2]]]

    torch.manual_seed(0)
    image, mask = torch.randn(2, 3, 5, 5), (torch.rand(2, 5, 5) > 0.5).float()
    found = masked_pyramid(extract, image, mask, masking=masking)
    assert [len(x) for x in seen] == [passes]
    expected = mask_maps(extract(image), extract(image * mask[:, None]), mask, masking=masking)
    for stage, wanted in zip(found, expected, strict=True):
        for x, y in zip(stage, wanted, strict=True):
            assert torch.equal(x, y)


def test_bad_input() -> None:
    image = torch.zeros(2, 3, 5, 5)
    for shape in ((2, 5, 4), (1, 5, 5), (2, 1, 5, 5), (5, 5)):
        with pytest.raises(InputError, match="mask is"):
            masked_pyramid(lambda x: [[x]], image, torch.zeros(shape))
    with pytest.raises(ModelError, match="masking is 'mixed'; allowed: hm, fm, im, add, reverse"):
        masked_pyramid(lambda x: [[x]], image, torch.zeros(2, 5, 5), masking="mixed")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="masked_image_features is None; masking 'hm' needs these maps"):
        mask_maps([[FEATURE]], None, MASK, masking="hm")
    with pytest.raises(InputError, match="features is None; masking 'fm'"):
        mask_maps(None, [[FEATURE]], MASK, masking="fm")
