"""Cut an OpenVINO IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from export.debug.graphs import GraphLayer, given_name
from runtime.bundle.engine_files import EngineFiles
from runtime.common.arrays import Array
from runtime.common.files import scratch_folder
from runtime.common.vendors import import_openvino
from runtime.errors import ExportError

_NO_LAYERS = frozenset({"Parameter", "Constant", "Result"})


class OpenVinoGraph:
    """An IR, read from its files' contents."""

    def __init__(self, files: EngineFiles) -> None:
        self._openvino = import_openvino()
        self._files = files
        self._model = self._read()

    @classmethod
    def load(cls, path: Path) -> OpenVinoGraph:
        """The graph of the IR at ``path`` (.xml), whose weights lie beside it."""
        weights = path.with_suffix(".bin")
        return cls(EngineFiles(path.name, path.read_bytes(), {weights.name: weights.read_bytes()}))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(port.get_any_name() for port in self._model.inputs)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return tuple(port.get_any_name() for port in self._model.outputs)

    @cached_property
    def layers(self) -> tuple[GraphLayer, ...]:
        numbers: dict[tuple[str, int], str] = {}
        constants: set[str] = set()
        layers = []
        for operation in self._model.get_ordered_ops():
            kind, name = operation.get_type_name(), operation.get_friendly_name()
            tensors = tuple(_name(port, numbers) for port in operation.outputs())
            sources = [port.get_source_output() for port in operation.inputs()]
            makers = [port.get_node().get_friendly_name() for port in sources]
            if kind != "Parameter" and constants.issuperset(makers):  # its value is the same for all inputs
                constants.add(name)
            if kind in _NO_LAYERS:
                continue
            activations = tuple(
                _name(port, numbers) for port, maker in zip(sources, makers, strict=True) if maker not in constants
            )
            weights = tuple(maker for maker in makers if maker in constants)
            layers.append(GraphLayer(kind, activations, tensors, weights))
        return tuple(layers)

    @cached_property
    def float_tensors(self) -> frozenset[str]:
        return frozenset(name for name, port in _tensors(self._model).items() if port.get_element_type().is_real())

    def cut(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> OpenVinoGraph:
        openvino = self._openvino
        model = self._read()  # a clone would share what is changed here
        tensors = _tensors(model)
        if missing := sorted({*feeds, *outputs} - tensors.keys()):
            raise ExportError(f"the IR has no tensor {', '.join(missing)}")
        given: dict[str, Any] = {}
        for name, array in feeds.items():
            port = tensors[name]
            if port.get_node().get_type_name() == "Parameter":
                given[name] = port.get_node()
                continue
            shape = openvino.PartialShape(list(array.shape))
            parameter = openvino.opset13.parameter(shape, port.get_element_type())
            parameter.output(0).get_tensor().set_names({given_name(name, outputs)})
            for reader in list(port.get_target_inputs()):
                reader.replace_source_output(parameter.output(0))
            given[name] = parameter
        results = []
        for name in outputs:
            tensors[name].get_tensor().set_names({name})
            results.append(openvino.opset13.result(tensors[name]))
        read = _parameters_of(results)
        known = {parameter.get_friendly_name() for parameter in given.values()}
        if lacking := sorted(name for name in read if name not in known):
            raise ExportError(f"{', '.join(outputs)} need more than {', '.join(feeds)}: {', '.join(lacking)}")
        wanted = [parameter for parameter in given.values() if parameter.get_friendly_name() in read]
        return OpenVinoGraph(_written(openvino, openvino.Model(results, wanted, "part"), self._files.name))

    def files(self, name: str) -> EngineFiles:
        (weights,) = self._files.companions.values()
        return EngineFiles(f"{name}.xml", self._files.main, {f"{name}.bin": weights})

    def _read(self) -> Any:
        (weights,) = self._files.companions.values()
        return self._openvino.Core().read_model(model=self._files.main, weights=weights)


def _tensors(model: Any) -> dict[str, Any]:
    """Each named tensor's port."""
    return {
        name: port
        for operation in model.get_ordered_ops()
        if operation.get_type_name() not in ("Constant", "Result")
        for port in operation.outputs()
        for name in port.get_names()
    }


def _name(port: Any, numbers: dict[tuple[str, int], str]) -> str:
    """A tensor's name, or a number where it has none; of several names the first in the alphabet."""
    if names := port.get_names():
        return str(min(names))
    key = (port.get_node().get_friendly_name(), port.get_index())
    return numbers.setdefault(key, f"#{len(numbers)}")


def _parameters_of(results: Sequence[Any]) -> set[str]:
    """The names of the parameters that results are computed from."""
    seen: set[str] = set()
    parameters: set[str] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() == "Parameter":
            parameters.add(name)
        waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return parameters


def _written(openvino: Any, model: Any, name: str) -> EngineFiles:
    with scratch_folder("edgevis-debug-") as folder:
        path = Path(folder, name).with_suffix(".xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        weights = path.with_suffix(".bin")
        return EngineFiles(path.name, path.read_bytes(), {weights.name: weights.read_bytes()})
