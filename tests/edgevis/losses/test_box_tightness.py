"""The box-tightness losses against reference values, against a loop over lines, and on a small problem."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import losses as benchmark
from edgevis.losses import (
    BoxTightnessLoss,
    MILBaselineLoss,
    box_tightness_loss,
    mil_baseline_loss,
    pairwise_loss,
)
from edgevis.losses.box_tightness.bags import class_masks, positive_bags
from edgevis.losses.box_tightness.lines import lines_of
from edgevis.losses.box_tightness.sampling import bilinear, bordered, taps
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = np.load(GOLDEN_FOLDER / "mil_loss.npz")
ROTATE = np.load(GOLDEN_FOLDER / "mil_rotate.npz")
CASES = [str(name) for name in GOLDEN["names"]]
PER_BOX = [name for name in CASES if f"{name}/loss_perbox" in GOLDEN]
ANGLES = (-40, -20, 0, 20, 40)


def _case(name: str, key: str) -> Any:
    return GOLDEN[f"{name}/{key}"]


def _inputs(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, str, float]:
    pred = torch.from_numpy(GOLDEN[str(_case(name, "pred_key"))]).to(dtype)
    return pred, torch.from_numpy(_case(name, "boxes")), str(_case(name, "method")), float(_case(name, "alpha"))


def _loss(name: str, pred: Tensor, *, per_box: bool) -> Tensor:
    _, boxes, smooth_max, alpha = _inputs(name)
    kind = str(_case(name, "kind"))
    if kind == "pairwise":
        return pairwise_loss(pred, boxes)
    if kind == "axis_all":
        return mil_baseline_loss(pred, boxes, smooth_max, alpha)  # type: ignore[arg-type]
    if kind == "axis_focal":  # the box's own rows and columns: no rotation
        return box_tightness_loss(pred, boxes, (0,), smooth_max, alpha)  # type: ignore[arg-type]
    assert kind == "parallel_focal"
    return box_tightness_loss(pred, boxes, _case(name, "angles"), smooth_max, alpha, per_box)  # type: ignore[arg-type]


def _off(found: Tensor, expected: Any) -> float:
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "per_box"), [(n, False) for n in CASES] + [(n, True) for n in PER_BOX])
def test_reference_losses_and_gradients(name: str, per_box: bool, dtype: torch.dtype) -> None:
    suffix = "_perbox" if per_box else ""
    pred = _inputs(name, dtype)[0].requires_grad_()
    loss = _loss(name, pred, per_box=per_box)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert loss.dtype == dtype
    of_loss, of_gradient = (1e-4, 1e-3) if dtype == torch.float32 else (1e-5, 1e-4)
    assert _off(loss, _case(name, f"loss{suffix}")) < of_loss
    assert _off(gradient, _case(name, f"grad{suffix}")) < of_gradient


@pytest.mark.parametrize("name", [name for name in CASES if f"{name}/n_bags" in GOLDEN])
def test_reference_bags(name: str) -> None:
    pred, boxes, smooth_max, alpha = _inputs(name)
    angles = tuple(float(angle) for angle in _case(name, "angles"))
    per_box = str(_case(name, "kind")) != "parallel_focal"
    values, classes = positive_bags(pred, boxes, angles, smooth_max, alpha, per_box=per_box)  # type: ignore[arg-type]
    outside = (~class_masks(boxes, pred.shape)).sum((0, 2, 3))
    for of_class, (positive, negative) in enumerate(_case(name, "n_bags")):
        found = values[classes == of_class]
        assert len(found) == positive
        if str(_case(name, "kind")) != "axis_all":
            assert outside[of_class] == negative
        else:
            assert negative == pred.shape[0] * sum(pred.shape[2:])
        if positive:
            np.testing.assert_allclose(found.numpy(), _case(name, f"pos_bags_c{of_class}"), rtol=1e-9)


def test_all_kinds_and_methods_are_covered() -> None:
    found = {(str(_case(name, "kind")), str(_case(name, "method"))) for name in CASES}
    methods = ("max", "softmax", "quasimax")
    kinds = ("parallel_focal", "axis_focal", "axis_all")
    assert found == {("pairwise", "-"), ("parallel_focal", "genmean"), *itertools.product(kinds, methods)}


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("angle", [-60, -40, -30, -10, 0, 20, 25, 40, 60])
def test_reference_rotation(case: str, angle: int) -> None:
    """Which columns and rows cross, how long they are, what image and mask show on them; a box may end outside."""
    image = torch.from_numpy(ROTATE[f"{case}/image"]).double()
    height, width = image.shape
    box, crop = torch.from_numpy(ROTATE[f"{case}/box"])[None], torch.tensor([[0, 0, width - 1, height - 1]])
    x1, y1, x2, y2 = box[0].tolist()
    mask = torch.zeros_like(image)
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    lines = lines_of(box, crop, (angle,))
    x, y = lines.points()
    maps = [bordered(z[None, None]) for z in (image, mask)]
    place, weights = taps(x, y, maps[0], torch.zeros_like(lines.box), dtype=torch.float64, within=crop[lines.box])
    images, masks = (bilinear(z, place, weights) for z in maps)
    golden = {key: ROTATE[f"{case}/ang{angle}/{key}"] for key in ("image_rot", "mask_rot", "min_len_cols_rows")}
    for is_row, name in enumerate(("cols", "rows")):
        pixels, inside = (golden[key] if is_row else golden[key].T for key in ("image_rot", "mask_rot"))
        lengths = np.zeros(len(pixels), np.int64)
        # A row's step is (cos, sin), a column's (-sin, cos).
        rows = (lines.step_x - math.cos(math.radians(angle))).abs() < 1e-9
        for line in (rows if is_row else ~rows).nonzero()[:, 0].tolist():
            within = masks[line] > 0.5
            if within.sum() < lines.needed[line]:
                continue
            at = int(lines.place[line])
            lengths[at] = int(within.sum())
            np.testing.assert_allclose(images[line][within].numpy(), pixels[at][inside[at] > 0.5], atol=1e-4)
            np.testing.assert_allclose(masks[line][within].numpy(), inside[at][inside[at] > 0.5], atol=1e-4)
            assert lines.needed[line] == golden["min_len_cols_rows"][is_row]
        np.testing.assert_array_equal(lengths, ROTATE[f"{case}/ang{angle}/bag_len_{name}"])
        np.testing.assert_array_equal(lengths > 0, ROTATE[f"{case}/ang{angle}/valid_{name}"])


def _random_boxes(random: torch.Generator, count: int, *, height: int, width: int) -> Tensor:
    """Boxes of every size from one pixel to the whole image, and at its edges."""
    x = torch.randint(0, width, (count, 2), generator=random).sort(1).values
    y = torch.randint(0, height, (count, 2), generator=random).sort(1).values
    of = torch.stack([torch.randint(0, 2, (count,), generator=random) for _ in range(2)], 1)
    boxes = torch.cat([of, torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)], 1)
    special = [
        [0, 0, 0, 0, width - 1, height - 1],
        [1, 0, 3, 5, 3, 5],
        [1, 1, 0, 0, 0, height - 1],
        [0, 1, 7, 9, 20, 9],
    ]
    return torch.cat([boxes, torch.tensor(special)])


@pytest.mark.parametrize("smooth_max", ["softmax", "quasimax", "max"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loop_over_lines_agrees(smooth_max: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    pred = torch.rand(2, 2, 33, 40, generator=random, dtype=torch.float64, requires_grad=True)
    boxes = _random_boxes(random, 6, height=33, width=40)
    angles = (-73.5, -45, -12, 0, 7.5, 30, 61)
    losses = [f(pred, boxes, angles, smooth_max, 5.0) for f in (box_tightness_loss, benchmark.line_by_line)]  # type: ignore[operator]
    gradients = [torch.autograd.grad(loss.sum(), pred)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-9)


def test_many_small_groups_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(3)
    pred = torch.rand(2, 2, 33, 40, generator=random)
    boxes = _random_boxes(random, 8, height=33, width=40)
    whole = positive_bags(pred, boxes, (-20.0, 0.0, 50.0), "softmax", 4.0, per_box=True)
    monkeypatch.setattr("edgevis.losses.box_tightness.bags._POINTS_CPU", 50)
    parts = positive_bags(pred, boxes, (-20.0, 0.0, 50.0), "softmax", 4.0, per_box=True)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_angle_zero_means_the_rows_and_columns_of_the_box() -> None:
    pred = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 4, 3, 11, 17]])
    inside = pred[0, 0, 3:18, 4:12]
    values, _ = positive_bags(pred, boxes, (0.0,), "max", 0.0, per_box=True)
    assert torch.equal(values, torch.cat([inside.amax(0), inside.amax(1)]))


def test_a_line_of_whole_length_counts_at_60_degrees() -> None:
    """20 / cos 60° is 39.999999999999986 in float64: the needed length is 40, not 39."""
    lines = lines_of(torch.tensor([[30, 30, 49, 49]]), torch.tensor([[0, 0, 79, 79]]), (60.0, -60.0))
    assert set(lines.needed.tolist()) <= {40}
    assert len(lines.needed) == 0 or int(lines.length.min()) >= 40


def test_too_steep_lines_leave_the_undivided_negative_sum() -> None:
    pred = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 5, 6, 12, 14]])
    outside = torch.ones(24, 24, dtype=torch.bool)
    outside[6:15, 5:13] = False
    p = pred[0, 0][outside]
    expected = -0.75 * (p.square() * torch.log(1 - p)).sum()
    for smooth_max in ("max", "softmax"):
        loss = box_tightness_loss(pred, boxes, (89.0,), smooth_max, 4.0)  # type: ignore[arg-type]
        torch.testing.assert_close(loss, expected[None], rtol=1e-12, atol=0)


def test_maxima_agree_on_what_they_approximate() -> None:
    """Of a constant prediction inside the box every approximation is that constant; order: mean <= smooth <= max."""
    boxes = torch.tensor([[0, 0, 6, 6, 20, 25]])
    constant = torch.full((1, 1, 32, 32), 0.3, dtype=torch.float64)
    varied = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    for smooth_max in ("max", "softmax", "quasimax", "genmean"):
        values, _ = positive_bags(constant, boxes, (0.0, 20.0), smooth_max, 6.0, per_box=True)  # type: ignore[arg-type]
        torch.testing.assert_close(values, torch.full_like(values, 0.3), rtol=1e-9, atol=1e-9)
        found[smooth_max], _ = positive_bags(varied, boxes, (0.0,), smooth_max, 6.0, per_box=True)  # type: ignore[arg-type]
    for smooth_max in ("softmax", "quasimax", "genmean"):
        assert (found[smooth_max] < found["max"]).all()
    sharp, _ = positive_bags(varied, boxes, (0.0,), "softmax", 64.0, per_box=True)
    assert (found["max"] - sharp).abs().max() < 0.05


@pytest.mark.parametrize("smooth_max", ["max", "softmax", "quasimax", "genmean"])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_predictions_give_finite_losses_and_gradients(
    smooth_max: str, value: float, dtype: torch.dtype
) -> None:
    pred = torch.full((1, 1, 24, 24), value, dtype=dtype, requires_grad=True)
    boxes = torch.tensor([[0, 0, 5, 6, 12, 14]])
    loss = box_tightness_loss(pred, boxes, (0, 25), smooth_max, 8.0) + pairwise_loss(pred, boxes)  # type: ignore[arg-type]
    loss = loss + mil_baseline_loss(pred, boxes, smooth_max, 8.0)  # type: ignore[arg-type]
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


def test_released_definition() -> None:
    """Neighbours mix, and the smooth maximum is the generalised mean with power 4, whatever was asked for."""
    name = "overlap_ang40s20_softmax6"
    pred, boxes, _, _ = _inputs(name)
    released = BoxTightnessLoss(ANGLES, "softmax", 6, pairwise_weight=0, definition="released")
    expected = box_tightness_loss(pred, boxes, ANGLES, "genmean", 4, per_box=False).sum()
    assert released(pred, boxes) == expected
    paper = BoxTightnessLoss(ANGLES, "softmax", 6, pairwise_weight=0)
    assert abs(float(paper(pred, boxes)) / float(_case(name, "loss_perbox").sum()) - 1) < 1e-9
    sharp = BoxTightnessLoss(ANGLES, "max", 6, pairwise_weight=0, definition="released")
    assert abs(float(sharp(pred, boxes)) / float(_case("overlap_ang40s20_max", "loss").sum()) - 1) < 1e-9


def test_the_whole_loss_is_unary_plus_ten_times_pairwise_summed_over_classes() -> None:
    pred, boxes, _, _ = _inputs("multi_ang40s20_softmax6")
    pairwise = float(_case("pair_multi", "loss").sum())
    unary = float(_case("multi_ang40s20_softmax6", "loss").sum())
    assert float(BoxTightnessLoss(ANGLES, "softmax", 6)(pred, boxes)) == pytest.approx(unary + 10 * pairwise, rel=1e-6)
    unary = float(_case("multi_axisall_max", "loss").sum())
    assert float(MILBaselineLoss()(pred, boxes)) == pytest.approx(unary + 10 * pairwise, rel=1e-6)


def test_baseline_can_leave_lines_out_that_meet_a_box() -> None:
    pred = torch.rand(2, 1, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = torch.tensor([[1, 0, 2, 3, 6, 5]])
    rows, columns = pred[0, 0].amax(1), pred[0, 0].amax(0)
    missed_rows, missed_columns = pred[1, 0, [0, 1, 2, 6, 7]].amax(1), pred[1, 0][:, [0, 1, 7, 8, 9]].amax(0)
    inside = pred[1, 0, 3:6, 2:7]
    negative = torch.cat([rows, columns, missed_rows, missed_columns])
    positive = torch.cat([inside.amax(0), inside.amax(1)])
    expected = -((1 - negative).log().sum() + positive.log().sum()) / (len(negative) + len(positive))
    torch.testing.assert_close(mil_baseline_loss(pred, boxes, "max", negatives="missing"), expected[None])
    assert mil_baseline_loss(pred, boxes, "max") != expected


def test_training_fills_the_boxes() -> None:
    """Free logits, two boxes: the loss falls, the boxes are touched on all sides and nothing outside is marked."""
    logits = torch.full((1, 1, 64, 64), -1.0, requires_grad=True)
    boxes = torch.tensor([[0, 0, 8, 10, 27, 25], [0, 0, 36, 30, 55, 58]])
    loss_of = BoxTightnessLoss(ANGLES, "softmax", 4, pairwise_weight=1)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(torch.sigmoid(logits), boxes)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    found = logits.detach()[0, 0] > 0
    inside = class_masks(boxes, logits.shape)[0, 0]
    assert losses[-1] < losses[0] / 10
    assert not found[~inside].any()
    assert found[inside].float().mean() > 0.8
    for _, _, x1, y1, x2, y2 in boxes.tolist():
        assert found[y1 : y2 + 1, x1 : x2 + 1].any(0).all()
        assert found[y1 : y2 + 1, x1 : x2 + 1].any(1).all()


BOX = torch.tensor([[0, 0, 2, 3, 8, 9]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 0, 2, 3, 16, 9), "x2 16, y2 9; inside of the image x is 0 to 15 and y is 0 to 11: clip the box"),
        ((0, 0, 2, 3, 8, 12), "inside of the image"),
        ((0, 0, -1, 3, 8, 9), "inside of the image"),
        ((0, 0, 8, 3, 2, 9), "x1 must not be above x2"),
        ((0, 0, 2, 9, 8, 3), "x1 must not be above x2"),
        ((0, 2, 2, 3, 8, 9), "box 1 is image 0, class 2, .*; the classes are 0 to 1"),
        ((0, -1, 2, 3, 8, 9), "the classes are"),
        ((1, 0, 2, 3, 8, 9), "the images are 0 to 0"),
        ((-1, 0, 2, 3, 8, 9), "the images are"),
    ],
)
def test_bad_boxes(row: tuple[int, ...], message: str) -> None:
    pred = torch.rand(1, 2, 12, 16)
    boxes = torch.cat([BOX, torch.tensor([row])])
    for loss in (BoxTightnessLoss(ANGLES), MILBaselineLoss(), pairwise_loss):
        with pytest.raises(InputError, match=message):
            loss(pred, boxes)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.rand(2, 6), "boxes are torch.float32; allowed: integers"),
        (torch.ones(2, 6, dtype=torch.bool), "boxes are torch.bool"),
        (torch.zeros(2, 5, dtype=torch.int64), r"shape \(2, 5\); allowed: \(N, 6\)"),
        (torch.zeros(6, dtype=torch.int64), r"shape \(6,\)"),
        ("boxes", "cannot be read as a tensor"),
    ],
)
def test_bad_tables_of_boxes(boxes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        box_tightness_loss(torch.rand(1, 1, 12, 16), boxes, ANGLES, "max", 0)


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (torch.full((1, 1, 4, 4), math.nan), "pred holds NaN"),
        (torch.full((1, 1, 4, 4), 1.5), "values from 1.5 to 1.5; allowed: probabilities from 0 to 1, as torch.sigmoid"),
        (torch.full((1, 1, 4, 4), -0.1), "values from -0.1"),
        (torch.full((1, 1, 4, 4), math.inf), "values from inf"),
        (torch.rand(1, 4, 4), r"shape \(1, 4, 4\)"),
        (torch.rand(0, 1, 4, 4), r"shape \(0, 1, 4, 4\)"),
        (torch.ones(1, 1, 4, 4, dtype=torch.int64), "a tensor of torch.int64"),
        (np.zeros((1, 1, 4, 4)), "pred is a ndarray"),
    ],
)
def test_bad_predictions(pred: Any, message: str) -> None:
    boxes = torch.zeros((0, 6), dtype=torch.int64)
    for loss in (BoxTightnessLoss(ANGLES), MILBaselineLoss(), pairwise_loss):
        with pytest.raises(InputError, match=message):
            loss(pred, boxes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"angles": ()}, "angles are empty"),
        ({"angles": (0, 90)}, "an angle is 90 degrees; allowed: above -90 and below 90"),
        ({"angles": (math.nan,)}, "an angle is nan"),
        ({"angles": 20}, "a sequence of degrees"),
        ({"smooth_max": "mean"}, "smooth_max is 'mean'; allowed: softmax, quasimax, max, genmean"),
        ({"alpha": 0}, "alpha is 0; allowed: 0.001 to 64"),
        ({"alpha": "high"}, "alpha is 'high'"),
        ({"beta": 1.5}, "beta is 1.5; allowed: 0 to 1"),
        ({"gamma": -1}, "gamma is -1; allowed: 0 or more"),
        ({"gamma": math.nan}, "gamma is nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {"angles": ANGLES, "smooth_max": "softmax", "alpha": 4, **arguments}
    with pytest.raises(InputError, match=message):
        BoxTightnessLoss(**given)
    with pytest.raises(InputError, match=message):
        box_tightness_loss(torch.rand(1, 1, 12, 16), BOX, **given)


def test_bad_arguments_of_the_modules() -> None:
    with pytest.raises(InputError, match="pairwise_weight is -1"):
        BoxTightnessLoss(ANGLES, pairwise_weight=-1)
    with pytest.raises(InputError, match="pairwise_weight is True"):
        MILBaselineLoss(pairwise_weight=True)
    with pytest.raises(InputError, match="definition is 'code'; allowed: paper, released"):
        BoxTightnessLoss(ANGLES, definition="code")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negatives is 'none'; allowed: all, missing"):
        MILBaselineLoss(negatives="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negatives is 'none'"):
        mil_baseline_loss(torch.rand(1, 1, 12, 16), BOX, negatives="none")  # type: ignore[arg-type]


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["smooth_max"] for row in found] == ["softmax", "quasimax", "max"]
    assert all(row["ratio"] > 0 for row in found)


def test_the_benchmark_notices_a_wrong_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "line_by_line", lambda *arguments: 1.01 * box_tightness_loss(*arguments))
    assert benchmark.main(["--quick"]) == 1
    assert "softmax: the losses of the two implementations differ by" in capsys.readouterr().err
