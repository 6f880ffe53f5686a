"""Results can be drawn, printed and sent on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runtime.images.draw import color_of, draw_tag
from runtime.results import Classification, Identification, Match

from bundles import Array, picture

SPEED = {"preprocess": 0.25, "inference": 1.5, "postprocess": 0.125}
KNOWN = Identification("anna", 0.75, (Match("anna", 0.75), Match("björn", -0.5)), SPEED)
UNKNOWN = Identification(None, 0.5, (Match("anna", 0.5),), SPEED)
NOBODY = Identification(None, 0.0, (), SPEED)
CLASS = Classification("cat", 0.75, ("cat", "dog"), (0.75, 0.25), SPEED)
RESULTS = [KNOWN, UNKNOWN, NOBODY, CLASS]


def test_plain_data_for_json() -> None:
    assert json.loads(json.dumps(KNOWN.to_dict())) == {
        "label": "anna",
        "score": 0.75,
        "matches": [{"label": "anna", "score": 0.75}, {"label": "björn", "score": -0.5}],
        "speed_ms": SPEED,
    }
    assert json.loads(json.dumps(CLASS.to_dict())) == {
        "label": "cat",
        "score": 0.75,
        "labels": ["cat", "dog"],
        "scores": [0.75, 0.25],
        "speed_ms": SPEED,
    }
    assert NOBODY.to_dict()["label"] is None


def test_results_are_equal_when_they_say_the_same_however_long_they_took() -> None:
    assert Identification("anna", 0.75, KNOWN.matches, {}) == KNOWN
    assert hash(Identification("anna", 0.75, KNOWN.matches, {})) == hash(KNOWN)
    assert Identification("anna", 0.7, KNOWN.matches) != KNOWN


def views() -> dict[str, Array]:
    frame = picture(1, 120, 160)
    frozen = frame.copy()
    frozen.flags.writeable = False
    return {
        "frame": frame,
        "crop": frame[10:90, 20:100],
        "mirrored": frame[:, ::-1],
        "rotated": np.rot90(frame),
        "transposed": frame.transpose(1, 0, 2),
        "Fortran order": np.asfortranarray(frame),
        "channels exchanged": frame[..., ::-1],
        "read-only": frozen,
        "one pixel": frame[:1, :1],
        "one row": frame[:1],
    }


@pytest.mark.parametrize("name", views())
@pytest.mark.parametrize("result", RESULTS)
def test_plot_draws_on_a_copy(result: Any, name: str) -> None:
    image = views()[name]
    before = image.copy()
    drawn = result.plot(image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != image).any()
    np.testing.assert_array_equal(image, before)
    drawn[...] = 0
    np.testing.assert_array_equal(image, before)


def test_plot_writes_more_for_more_matches() -> None:
    canvas = np.zeros((200, 300, 3), np.uint8)
    one_match = Identification("anna", 0.5, UNKNOWN.matches)
    rows = [
        int((result.plot(canvas)[5:195, 5:150] != 0).any(axis=(1, 2)).sum())
        for result in (NOBODY, one_match, UNKNOWN, KNOWN)
    ]
    assert rows[0] > 10  # "unknown"
    assert rows[1] == pytest.approx(rows[0], abs=4)  # the one match
    assert rows[2] > 1.7 * rows[0]  # "unknown" and the one match
    assert rows[3] == pytest.approx(rows[2], abs=4)  # two matches


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("shape", [(120, 160), (40, 20), (1, 1), (300, 400)])
def test_the_gallery_is_a_strip_below(result: Any, shape: tuple[int, int]) -> None:
    """Pictures of any shape, of some labels only."""
    image = picture(1, *shape)
    pictures = {"anna": np.full((30, 10, 3), 77, np.uint8), "cat": np.full((3, 50, 3), 77, np.uint8)}
    drawn = result.plot(image, pictures)
    side = max(1, shape[1] // 5)
    assert drawn.shape == (shape[0] + side, shape[1], 3)
    shown = (drawn[shape[0] :] == 77).all(axis=2)
    ranked = result.labels if isinstance(result, Classification) else [match.label for match in result.matches]
    assert bool(shown[:, :side].any()) == (shape[1] > 100 and bool(ranked)), "smaller ones lie under the tag"
    assert not shown[:, side:].any()


def test_a_strip_shows_no_more_than_fits() -> None:
    ranking = tuple(Match(f"p{place}", 1 - place / 10) for place in range(9))
    pictures = {label: np.full((20, 20, 3), 60 + place, np.uint8) for place, (label, _) in enumerate(ranking)}
    strip = Identification("p0", 1.0, ranking).plot(np.zeros((100, 500, 3), np.uint8), pictures)[100:]
    for place in range(5):
        assert (strip[60:, 100 * place + 10 : 100 * place + 90] == 60 + place).all()


def test_a_label_keeps_its_colour_and_the_frame_shows_it() -> None:
    assert color_of("anna") == color_of("anna")
    assert len({color_of(f"person {index}") for index in range(50)}) > 25
    assert color_of(None) == (150, 150, 150)
    canvas = np.zeros((120, 160, 3), np.uint8)
    assert tuple(KNOWN.plot(canvas)[-1, -1].tolist()) == color_of("anna")
    assert tuple(UNKNOWN.plot(canvas)[-1, -1].tolist()) == color_of(None)


@pytest.mark.parametrize("text", ["anna 0.75", "车站 🚉", "", "x" * 300])
def test_a_tag_with_any_text_at_any_place(text: str) -> None:
    for origin in [(0, 0), (50, 30), (-5, -5), (1000, 1000)]:
        canvas = np.zeros((60, 80, 3), np.uint8)
        height = draw_tag(canvas, text, origin, (0, 200, 200))
        assert 5 < height < 60
        assert bool(canvas.any()) == (origin != (1000, 1000))


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (0, 255, 255), (255, 0, 0)])
def test_letters_can_be_read_on_their_tag(color: tuple[int, int, int]) -> None:
    canvas = np.full((40, 120, 3), 127, np.uint8)
    height = draw_tag(canvas, "WWWWW", (0, 0), color)
    tag = canvas[: height - 1, :40].astype(int)
    assert np.abs(tag - np.array(color)).max() > 200
