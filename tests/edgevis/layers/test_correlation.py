"""Correlations of feature maps against reference values of HSNet; see tests/golden/README.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevis.layers import correlation_pyramid
from edgevis.layers.correlation import pair_correlation, row_correlation, unit_channels
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER


def maps_of(golden: np.lib.npyio.NpzFile, case: str, side: str) -> list[Tensor]:
    names = sorted(name for name in golden.files if name.startswith(f"{case}.{side}") and name[-2:].isdigit())
    return [torch.from_numpy(golden[name]) for name in names]


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_reference(case: str) -> None:
    """Zero vectors, vectors about as long as epsilon, odd and unequal grids."""
    golden = np.load(GOLDEN / "02_correlation.npz")
    four, three_and_four, every = (int(count) for count in golden[f"{case}.stack_ids"])
    depths = (every - three_and_four, three_and_four - four, four)
    pyramid = correlation_pyramid(maps_of(golden, case, "q"), maps_of(golden, case, "s"), depths)
    for name, found in zip(("l4", "l3", "l2"), pyramid, strict=True):
        expected = golden[f"{case}.corr_{name}"]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)


def test_epsilon_is_added_to_the_length() -> None:
    x = torch.tensor([[3e-5, 4e-5], [0.0, 0.0], [6.0, 8.0]])
    expected = torch.tensor([[0.5, 4 / 6], [0.0, 0.0], [0.6, 0.8]])
    assert torch.allclose(unit_channels(x), expected, atol=1e-5)


def test_a_zero_vector_has_a_gradient() -> None:
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit_channels(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_every_query_meets_every_shot() -> None:
    torch.manual_seed(0)
    query, support = torch.randn(3, 2, 5, 6), torch.randn(2, 2, 5, 4)
    found = pair_correlation(query, support)
    assert found.shape == (6, 2, 6, 4)
    for n in range(3):
        for k in range(2):
            alone = row_correlation(query[n : n + 1], support[k : k + 1])[0]
            assert torch.allclose(found[n * 2 + k], alone, atol=1e-6)
    assert found.min() == 0
    assert torch.allclose(found[3, 1, 2, 3], (query[1, 1, :, 2] @ support[1, 1, :, 3]).clamp(min=0), atol=1e-6)


def test_bad_input() -> None:
    maps = [torch.zeros(1, 4, 3, 3)] * 3
    correlation_pyramid(maps, maps, (1, 1, 1))
    with pytest.raises(InputError, match="3 query maps and 2 support maps; allowed: 3 of each"):
        correlation_pyramid(maps, maps[:2], (1, 1, 1))
    with pytest.raises(InputError, match="allowed: 4 of each"):
        correlation_pyramid(maps, maps, (2, 1, 1))
    with pytest.raises(InputError, match="depths are"):
        correlation_pyramid(maps, maps, (3, 0, 0))
    with pytest.raises(InputError, match="same B and C"):
        correlation_pyramid(maps, [torch.zeros(1, 5, 3, 3)] * 3, (1, 1, 1))
    with pytest.raises(InputError, match="same B and C"):
        correlation_pyramid(maps, [torch.zeros(4, 3, 3)] * 3, (1, 1, 1))
    with pytest.raises(InputError, match="query maps of one level"):
        correlation_pyramid([*maps, torch.zeros(1, 4, 2, 2)], [*maps, maps[0]], (1, 1, 2))
