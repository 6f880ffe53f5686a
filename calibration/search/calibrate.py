"""The ranges of all graphs of a model, measured or taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from onnx import ModelProto

from calibration.cache import RangesCache
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges, int8_graph, measure_ranges
from calibration.quantize.qdq import Placement
from calibration.quantize.rules import Prepared, prepare
from runtime.common.arrays import Array
from runtime.tasks import LayerKind

NO_OUTPUTS: Mapping[str, Collection[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedGraph:
    """One float graph and its ranges.

    Attributes:
        prepared: The float graph, ready for Q/DQ.
        ranges: The ranges of its activations.
        note: Whether the ranges came from the cache, and if not, why.
    """

    prepared: Prepared
    ranges: Ranges
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedModel:
    """All graphs of a model with their ranges.

    Attributes:
        config: The configuration of the quantisation.
        graphs: Graph name to calibrated graph.
    """

    config: QuantizationConfig
    graphs: Mapping[str, CalibratedGraph]

    @property
    def layers(self) -> int:
        """The number of layers that may become int8."""
        return sum(len(graph.prepared.layers) for graph in self.graphs.values())

    def layers_of(self, kinds: Collection[LayerKind]) -> tuple[str, ...]:
        """``GRAPH/NODE`` of the layers of these kinds, see :attr:`calibration.quantize.rules.Layer.kinds`."""
        return tuple(
            f"{name}/{layer.name}"
            for name, graph in self.graphs.items()
            for layer in graph.prepared.layers
            if layer.kinds & set(kinds)
        )

    @property
    def excluded_by_rule(self) -> int:
        """The number of nodes that stay float by rule, see :mod:`calibration.quantize.rules`."""
        return sum(len(graph.prepared.excluded_by_rule) for graph in self.graphs.values())

    @property
    def notes(self) -> str:
        """The notes of all graphs, each once."""
        return ", ".join(sorted({graph.note for graph in self.graphs.values()}))

    def int8_graphs(self, placement: Placement, excluded: Collection[str] = ()) -> dict[str, ModelProto]:
        """Graph name to the graph with Q/DQ around all layers but ``excluded``.

        Args:
            placement: See :func:`calibration.quantize.qdq.with_qdq`.
            excluded: Layers that stay float, as ``GRAPH/NODE``.
        """
        config = replace(self.config, placement=placement)
        return {
            name: int8_graph(
                graph.prepared,
                graph.ranges,
                config,
                nodes_to_exclude={layer.name for layer in graph.prepared.layers if f"{name}/{layer.name}" in excluded},
            )
            for name, graph in self.graphs.items()
        }


def calibrate(
    fp32_graphs: Mapping[str, ModelProto],
    feeds: Callable[[str], Iterator[Mapping[str, Array]]],
    *,
    config: QuantizationConfig,
    cache: RangesCache | None = None,
    float32_outputs: Mapping[str, Collection[str]] = NO_OUTPUTS,
) -> CalibratedModel:
    """Measure the ranges of every graph, or read them from the cache.

    Args:
        fp32_graphs: Graph name to float graph.
        feeds: Maps a graph's name to batches of its real inputs; not called where the cache has the ranges.
        config: The configuration of the quantisation.
        cache: Where ranges are kept between builds; None measures anew and stores nothing.
        float32_outputs: Graph name to its :attr:`runtime.bundle.spec.Graph.float32_outputs`.

    Raises:
        ExportError: There are no feeds, or a tensor's values are not finite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    graphs = {}
    for name, model in fp32_graphs.items():
        prepared = prepare(model, config.operators, float32_outputs.get(name, ()))
        ranges, note = (None, "no cache") if cache is None else cache.load(name, model, config)
        if ranges is None:
            ranges = measure_ranges(prepared, feeds(name), config)
            if cache is not None:
                try:
                    cache.store(name, model, config, ranges)
                except OSError as error:  # such as a full disk: the build goes on without
                    note += f", and not kept: {error}"
        graphs[name] = CalibratedGraph(prepared, ranges, note)
    return CalibratedModel(config, graphs)
