"""Retrieval measures against torchreid's, and their corner cases by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.reid import read_split, score_weights
from edgevis import models
from edgevis.metrics import reid_ranking
from runtime.errors import InputError

from locations import GOLDEN_FOLDER
from shared_data import shared_data

GOLDEN = GOLDEN_FOLDER / "reid_eval.npz"


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize("kind", ["euclidean_norm0", "euclidean_norm1", "cosine_norm0", "cosine_norm1"])
def test_ranking_is_torchreids(case: str, kind: str) -> None:
    golden = np.load(GOLDEN)
    sides = [golden[f"{case}/{name}"] for name in ("q_pids", "g_pids", "q_camids", "g_camids")]
    curve, mean_ap = reid_ranking(golden[f"{case}/{kind}/distmat"], *sides)
    # The reference curve is float32.
    np.testing.assert_allclose(curve, golden[f"{case}/{kind}/cmc"], atol=1e-6)
    assert mean_ap == pytest.approx(float(golden[f"{case}/{kind}/mAP"]), abs=1e-6)


def test_same_camera_is_dropped_and_matchless_queries_are_skipped() -> None:
    distances = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]
    curve, mean_ap = reid_ranking(distances, [1, 9], [1, 2, 1, 1], [0, 0], [0, 1, 1, 1], max_rank=3)
    # Query 1 sees 2, 1, 1: hits at ranks 2 and 3. Query 9 has no match.
    np.testing.assert_allclose(curve, [0, 1, 1])
    assert mean_ap == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_curve_is_as_long_as_the_gallery_at_most() -> None:
    curve, _ = reid_ranking([[0.0, 1.0]], [1], [1, 2], [0], [1, 1])
    np.testing.assert_allclose(curve, [1, 1])


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match=r"\(1, 2\) do not fit"):
        reid_ranking([[0.0, 1.0]], [1], [1], [0], [1])
    with pytest.raises(InputError, match="NaN"):
        reid_ranking([[np.nan]], [1], [1], [0], [1])
    with pytest.raises(InputError, match="max_rank is 0"):
        reid_ranking([[0.0]], [1], [1], [0], [1], max_rank=0)
    with pytest.raises(InputError, match="no query has a gallery image"):
        reid_ranking([[0.0]], [1], [2], [0], [1])


@pytest.mark.parametrize("published", [True, False], ids=["published", "shipped"])
def test_osnet_on_pku_reid(published: bool) -> None:
    """The whole protocol gives what torchreid's weights are known for, and what the record of ours says."""
    data = shared_data("reid_pku", "pku_reid_dev.zip")
    shipped = models.shipped_weights("osnet-x0-25")
    assert shipped is not None
    recorded = json.loads(shipped.with_suffix(".json").read_text())["evaluation"]["pku_reid_dev"]
    weights = shared_data("weights", "osnet_x0_25_msmt17.safetensors") if published else shipped
    scores = score_weights(weights, read_split(data, "query"), read_split(data, "gallery"), published="osnet-x0-25")
    assert (scores.queries, scores.gallery) == (160, 160)
    prefix = "start_" if published else ""
    # One query is 1/160: another CPU's rounding may turn one near tie.
    assert scores.rank_1 == pytest.approx(recorded[f"{prefix}rank_1"], abs=0.0063)
    assert scores.mean_ap == pytest.approx(recorded[f"{prefix}mean_ap"], abs=0.002)
