"""Cast nodes that are safe in float16 and not in int8, in the precisions for which the target requests it."""

from __future__ import annotations

from onnx import ModelProto

from calibration.quantize.lint import lint_quantized
from export.autocast import fp16_from_fp32
from export.reference import CALIBRATION_BATCH, calibration_feeds
from export.request import BuildProgress
from export.state import BuildState, EngineKey

# The peak of an activation differs little between images, and float16's range has a margin of 4 above it.
_IMAGES = 8


def run(state: BuildState, progress: BuildProgress) -> None:
    """Replace the entries of ``graphs`` that compute in float16."""
    groups = _same_graphs(state)
    if not groups:
        return
    progress.begin("autocast")
    samples, deployment = state.calibration_samples, state.deployment
    few = samples.subset(range(min(len(samples), _IMAGES)))
    done, total = 0, len(groups) * len(deployment.image_graphs)
    for group in groups:
        source, (_, precision) = state.graphs[group[0]], group[0]
        cast: dict[str, ModelProto] = {graph.name: source[graph.name] for graph in deployment.set_graphs}
        for graph in deployment.image_graphs:
            feeds = calibration_feeds(state.model, deployment, graph, few, batch=CALIBRATION_BATCH)
            cast[graph.name] = fp16_from_fp32(source[graph.name], feeds, float32_outputs=graph.float32_outputs)
            if precision == "int8":
                lint_quantized(cast[graph.name])
            done += 1
            progress.advance(done, total)
        state.graphs |= dict.fromkeys(group, cast)
    cast_precisions = ", ".join(dict.fromkeys(precision for group in groups for _, precision in group))
    progress.end(f"float16 where {len(few)} images show that it is safe: {cast_precisions}")


def _same_graphs(state: BuildState) -> list[list[EngineKey]]:
    """The engines whose graphs are cast, grouped by precision and identical graphs."""
    groups: list[list[EngineKey]] = []
    for key, graphs in state.graphs.items():
        if key[1] not in state.target.autocast:
            continue
        for group in groups:
            if group[0][1] == key[1] and state.graphs[group[0]] is graphs:
                group.append(key)
                break
        else:
            groups.append([key])
    return groups
