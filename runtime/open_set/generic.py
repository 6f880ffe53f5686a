"""The statistics for weights without a measurement: the same fit over the raw cosines of several models.

``generic.json`` beside this file is written by ``python -m edgevis.open_set.generic``; it says on what.
"""

from __future__ import annotations

import functools
from pathlib import Path

from runtime.common.json_data import from_json, parse_json
from runtime.open_set.statistics import OpenSetStatistics

PATH = Path(__file__).with_name("generic.json")


@functools.cache
def generic(scoring: str) -> OpenSetStatistics:
    """The statistics for raw cosines scored as ``nearest`` or ``prototype``."""
    data = parse_json(PATH.read_bytes())
    return from_json(OpenSetStatistics, data["prototype" if scoring == "prototype" else "nearest"], PATH.name)
