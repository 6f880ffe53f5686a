"""The checks that compare the embeddings of new images with each other and with the enrolled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.common.arrays import Array, unit_rows
from runtime.enrolment.quality import Finding
from runtime.enrolment.quality_bounds import Bounds
from runtime.gallery.embedded import EmbeddedGallery

_MIN_OTHERS = 3  # of a label's images, to say that one is unlike them
_MAX_OTHERS = 64  # of a label's enrolled images that are compared with each other: the cost is quadratic


def relations(
    label: str, embeddings: Array, names: Sequence[str], gallery: EmbeddedGallery, bounds: Bounds
) -> list[list[Finding]]:
    """The findings for each image from its embedding.

    Args:
        label: The label they shall be enrolled as.
        embeddings: (N, D) float32 rows of length one, as the gallery holds them, not enrolled yet.
        names: N names, for people.
        gallery: The enrolled rows.
        bounds: The bounds of the checks.
    """
    enrolled = gallery.rows_of(label)
    rows = np.concatenate([enrolled, embeddings])
    cosines = np.asarray(embeddings @ rows.T, np.float64)
    itself = np.arange(len(embeddings)), len(enrolled) + np.arange(len(embeddings))
    findings: list[list[Finding]] = [[] for _ in names]
    own_scores = _own_scores(embeddings, rows, cosines, itself, gallery.scoring)
    outliers = _outliers(cosines, itself, _spread(enrolled, embeddings), bounds)
    for place, ranking in enumerate(gallery.search_rows(embeddings, 2)):
        rival = next((match for match in ranking if match.label != label), None)
        known = [f"an image enrolled as {label!r}"] * len(enrolled) + list(names)
        earlier = cosines[place, : len(enrolled) + place]
        duplicate = _duplicate(earlier, known, bounds)
        if duplicate is None and rival is not None:
            # The score of the nearest image is its cosine already; a prototype's score is not that of a single image.
            near = gallery.scoring == "nearest"
            theirs = np.array([rival.score]) if near else gallery.rows_of(rival.label) @ embeddings[place]
            duplicate = _duplicate(theirs, [f"an image enrolled as {rival.label!r}"] * len(theirs), bounds)
        if duplicate is not None:
            findings[place].append(duplicate)
        if rival is not None and len(rows) > 1:
            margin = rival.score - float(own_scores[place])
            if margin > bounds.max_rival_margin:
                detail = (
                    f"it scores {rival.score:.2f} as {rival.label!r} and {own_scores[place]:.2f} as the other images "
                    f"of {label!r}: is the label right?"
                )
                findings[place].append(
                    Finding("closer_to_other_label", "warn", margin, bounds.max_rival_margin, detail)
                )
        outlier = outliers[place]
        if outlier is not None:
            findings[place].append(outlier)
    return findings


def _own_scores(embeddings: Array, rows: Array, cosines: Array, itself: tuple[Array, Array], scoring: str) -> Array:
    """(N,) scores against the label's other images, by the gallery's scoring; meaningless when there are none."""
    others = cosines.copy()
    others[itself] = -1.0
    rest = rows.sum(axis=0, dtype=np.float64) - embeddings
    nearest = others.max(axis=1)
    prototype = np.einsum("nd,nd->n", embeddings, unit_rows(rest))
    return np.asarray({"nearest": nearest, "prototype": prototype, "blend": 0.5 * (nearest + prototype)}[scoring])


def _duplicate(cosines: Array, names: Sequence[str], bounds: Bounds) -> Finding | None:
    if not len(cosines):
        return None
    place = int(np.argmax(cosines))
    value = float(cosines[place])
    if value < bounds.max_cosine:
        return None
    detail = f"nearly the same picture as {names[place]} (cosine {value:.3f}): it adds nothing"
    return Finding("duplicate", "warn", value, bounds.max_cosine, detail)


def _spread(enrolled: Array, embeddings: Array) -> Array:
    """A sample of a label's rows, enrolled and new, of bounded size."""
    if len(enrolled) > _MAX_OTHERS:
        enrolled = enrolled[np.linspace(0, len(enrolled) - 1, _MAX_OTHERS).astype(np.intp)]
    return np.concatenate([enrolled, embeddings[:_MAX_OTHERS]])


def _outliers(cosines: Array, itself: tuple[Array, Array], sample: Array, bounds: Bounds) -> list[Finding | None]:
    """For each image, a finding if it is much further from the label's other images than they are from each other."""
    count = len(cosines)
    if cosines.shape[1] <= _MIN_OTHERS:
        return [None] * count
    others = cosines.copy()
    others[itself] = np.nan
    distances = 1 - np.nanmedian(others, axis=1)
    among = np.asarray(sample @ sample.T, np.float64)
    np.fill_diagonal(among, np.nan)
    # The median over images of the median over pairs: one or two strangers among them do not move it.
    usual = max(1 - float(np.median(np.nanmedian(among, axis=1))), 1e-3)
    findings: list[Finding | None] = []
    for distance in distances.tolist():
        ratio = distance / usual
        if ratio <= bounds.max_outlier_ratio or distance - usual <= bounds.max_outlier_gap:
            findings.append(None)
            continue
        detail = (
            f"its cosine to the label's other images is {1 - distance:.2f}, theirs to each other {1 - usual:.2f}: "
            "another person or thing, or a view of its own?"
        )
        findings.append(Finding("outlier", "warn", ratio, bounds.max_outlier_ratio, detail))
    return findings
