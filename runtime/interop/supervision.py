"""Results as :class:`supervision.Detections`, the type that Roboflow's annotators, zones and trackers take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.errors import MissingDependencyError


def supervision_detections(
    boxes_xyxy: Array,
    scores: Array,
    labels: Sequence[str],
    class_ids: Array,
    masks: npt.NDArray[np.bool_] | None = None,
) -> Any:
    """``supervision.Detections``; the labels are its ``data["class_name"]``.

    Args:
        boxes_xyxy: (N, 4) in pixels of the image.
        scores: (N,).
        labels: N names.
        class_ids: (N,).
        masks: (N, H, W).

    Raises:
        MissingDependencyError: supervision is not installed.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise MissingDependencyError("to_supervision needs the package supervision: pip install supervision") from error
    return Detections(
        xyxy=np.asarray(boxes_xyxy, np.float32).reshape(-1, 4),
        mask=masks,
        confidence=np.asarray(scores, np.float32),
        class_id=np.asarray(class_ids, np.int64),
        data={"class_name": np.array(labels, dtype=np.str_)},
    )
