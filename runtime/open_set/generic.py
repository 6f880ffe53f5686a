"""What is taken for weights of which nothing was measured: the same fit over several models' raw cosines.

Written by ``python -m edgevis.open_set --generic``; the source says on what.
"""

from __future__ import annotations

from runtime.open_set.statistics import OpenSetStatistics

GENERIC = OpenSetStatistics("nearest", (0.05,), (), (), 0.9, "")
