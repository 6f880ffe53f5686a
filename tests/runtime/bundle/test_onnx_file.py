"""External data of an ONNX graph are found wherever a tensor can stand, and must be files that the manifest lists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runtime.bundle.bundle import Bundle
from runtime.bundle.engine_files import read_engine
from runtime.bundle.onnx_file import external_locations, non_finite_weight
from runtime.errors import EngineError, IntegrityError
from runtime.predictor import Predictor

from bundles import replace_file, write_tiny_bundle

ENGINE = "engines/onnxruntime-fp32/embed.onnx"
DATA = "engines/onnxruntime-fp32/weights.data"

SIZE = 64
WEIGHTS = np.arange(SIZE, dtype=np.float32)


def external(location: str, name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[SIZE], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _value(name: str, shape: list[int] | None = None, dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, [SIZE] if shape is None else shape)


def _model(nodes: list[Any], initializers: list[TensorProto], **more: Any) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [_value("x")], [_value("y")], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def initializer(location: str) -> onnx.ModelProto:
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [external(location)])


def constant(location: str) -> onnx.ModelProto:
    made = helper.make_node("Constant", [], ["w"], value=external(location))
    return _model([made, helper.make_node("Add", ["x", "w"], ["y"])], [])


def subgraph(location: str) -> onnx.ModelProto:
    then = helper.make_graph([helper.make_node("Add", ["x", "w"], ["z"])], "t", [], [_value("z")], [external(location)])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["v"])], "e", [], [_value("v")])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=yes),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    return _model(nodes, [])


def function(location: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=external(location)),
        helper.make_node("Add", ["a", "w"], ["o"]),
    ]
    body = helper.make_function("own", "F", ["a"], ["o"], nodes, [helper.make_opsetid("", 17)])
    return _model([helper.make_node("F", ["x"], ["y"], domain="own")], [], functions=[body])


RUNNABLE = [initializer, constant, subgraph, function]


def sparse(location: str) -> onnx.ModelProto:
    model = _model([helper.make_node("Add", ["x", "w"], ["y"])], [])
    indices = helper.make_tensor("i", TensorProto.INT64, [SIZE], list(range(SIZE)))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(external(location), indices, [SIZE]))
    return model


def sparse_attribute(location: str) -> onnx.ModelProto:
    values = sparse(location).graph.sparse_initializer[0]
    return _model([helper.make_node("Constant", [], ["y"], sparse_value=values)], [])


def training(location: str) -> onnx.ModelProto:
    model = _model([helper.make_node("Identity", ["x"], ["y"])], [])
    model.training_info.add().initialization.CopyFrom(initializer(location).graph)
    return model


def function_default(location: str) -> onnx.ModelProto:
    model = function("inner.bin")
    model.functions[0].attribute_proto.append(helper.make_attribute("k", external(location)))
    return model


def inert(location: str) -> onnx.ModelProto:
    model = initializer(location)
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    return model


@pytest.mark.parametrize("make", [*RUNNABLE, sparse, sparse_attribute, training, function_default, inert])
def test_a_location_is_found_wherever_a_tensor_stands(make: Any) -> None:
    assert "sub/w.bin" in external_locations(make("sub/w.bin").SerializeToString())


def test_a_tensor_in_two_parts() -> None:
    # Protocol buffers merge a field that comes twice: neither part alone is an external tensor.
    one, two = external("w.bin"), TensorProto(data_location=TensorProto.EXTERNAL)
    one.data_location = TensorProto.DEFAULT
    data = b""
    for part in (one, two):
        attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=part).SerializeToString()
        data += attribute
    merged = onnx.AttributeProto.FromString(data)
    assert merged.t.data_location == TensorProto.EXTERNAL
    node = onnx.NodeProto(op_type="Constant", output=["y"]).SerializeToString() + _field(5, data)
    model = _field(7, _field(1, node))
    assert onnx.ModelProto.FromString(model).graph.node[0].attribute[0].t.external_data[0].value == "w.bin"
    assert external_locations(model) == {"w.bin"}


def _field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes([size]) + content


def test_a_name_like_the_key_is_no_location() -> None:
    model = _model([helper.make_node("Identity", ["x"], ["y"], name="location")], [])
    assert external_locations(model.SerializeToString()) == frozenset()


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_graphs_are_refused_or_read_and_never_crash(noise: bytes, at: int) -> None:
    data = subgraph("w.bin").SerializeToString()
    for damaged in (data[:at], data[:at] + noise + data[at:], b"location" + noise):
        try:
            found = external_locations(damaged)
        except ValueError:
            continue
        assert all(isinstance(location, str) for location in found)


# -- in a bundle ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose graph keeps its weights in a file beside it, which the manifest does not list yet."""
    path = write_tiny_bundle(tmp_path / "tiny.edgevis")
    graph = path / ENGINE
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights.data", size_threshold=0)
    replace_file(path, ENGINE, graph.read_bytes())
    return path


def test_external_data_that_the_manifest_does_not_list_are_refused(bundle: Path) -> None:
    with pytest.raises(IntegrityError, match=r"lists no file 'engines/.*weights\.data'"):
        Predictor(bundle)


def test_external_data_that_are_listed_are_used(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)
    with Predictor(write_tiny_bundle(tmp_path / "inside.edgevis")) as predictor:
        expected = predictor.embed(image)
    replace_file(bundle, DATA, (bundle / DATA).read_bytes())  # lists it
    monkeypatch.chdir(tmp_path)
    with Predictor(bundle) as predictor:
        (bundle / DATA).write_bytes(bytes((bundle / DATA).stat().st_size))  # in place, as it is used
        np.testing.assert_array_equal(predictor.embed(image), expected)
    with pytest.raises(IntegrityError, match="has been altered"):
        Predictor(bundle)


@pytest.mark.parametrize("location", ["../weights.data", "/etc/hostname", "", ".", "a/../../b", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("make", RUNNABLE)
def test_external_data_outside_are_refused(tmp_path: Path, make: Any, location: str) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.edgevis")
    replace_file(path, ENGINE, make(location).SerializeToString())
    with pytest.raises(IntegrityError):
        Bundle(path).engine_files(ENGINE)


@pytest.mark.parametrize("make", RUNNABLE)
def test_the_working_folder_is_not_looked_into(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.backends.onnxruntime import open_engine

    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "w.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "here" / "w.bin").write_bytes(bytes(WEIGHTS.nbytes))
    (tmp_path / "there" / "graph.onnx").write_bytes(make("w.bin").SerializeToString())
    monkeypatch.chdir(tmp_path / "here")
    files = read_engine(tmp_path / "there" / "graph.onnx")
    os.remove(tmp_path / "there" / "w.bin")
    engine = open_engine(files, precision="fp32", device="cpu", threads=1)
    np.testing.assert_array_equal(engine.run({"x": np.zeros(SIZE, np.float32)})["y"], WEIGHTS)
    engine.close()


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"location\xff\xff\xff")
    with pytest.raises(EngineError, match=r"cannot open graph\.onnx, which is no ONNX graph"):
        read_engine(tmp_path / "graph.onnx")


# --- weights that are not finite


def _weight(values: list[float], dtype: int, *, raw: bool) -> TensorProto:
    if not raw:
        return helper.make_tensor("w", dtype, [len(values)], values)
    if dtype == TensorProto.BFLOAT16:  # the upper half of a float32
        data = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = np.array(values, helper.tensor_dtype_to_np_dtype(dtype)).tobytes()
    return TensorProto(name="w", data_type=dtype, dims=[len(values)], raw_data=data)


_NAN, _INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [
        (TensorProto.FLOAT, True),
        (TensorProto.FLOAT, False),
        (TensorProto.DOUBLE, True),
        (TensorProto.DOUBLE, False),
        (TensorProto.FLOAT16, True),
        (TensorProto.BFLOAT16, True),
    ],
)
def test_weights_that_are_not_finite_are_named(dtype: int, raw: bool) -> None:
    def named(*values: float) -> str | None:
        model = _model([helper.make_node("Add", ["x", "w"], ["y"])], [_weight(list(values), dtype, raw=raw)])
        return non_finite_weight(model.SerializeToString(), {})

    assert named(1.0, 2.0, 60000.0) is None
    assert named(1.0, _NAN) == "w"
    assert named(_INF, 1.0) == "w"
    assert named(-_INF, 1.0) == "w"
    assert named(_NAN) == "w"
    assert named(-_INF) is None, "what a mask fills in is no weight"


def test_weights_outside_of_the_graph_count_and_integers_do_not() -> None:
    model = initializer("weights.data").SerializeToString()
    bad = WEIGHTS.copy()
    assert non_finite_weight(model, {"weights.data": bad.tobytes()}) is None
    bad[SIZE - 1] = np.nan
    assert non_finite_weight(model, {"weights.data": bad.tobytes()}) == "w"
    assert non_finite_weight(model, {}) is None
    integers = _model([], [helper.make_tensor("w", TensorProto.INT32, [2], [0x7FC00000, 0x7F800000])])
    assert non_finite_weight(integers.SerializeToString(), {}) is None


def test_an_engine_with_such_a_weight_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "embed.onnx"
    node = helper.make_node("Add", ["x", "w"], ["y"])
    path.write_bytes(_model([node], [_weight([1.0, _INF], TensorProto.FLOAT, raw=True)]).SerializeToString())
    with pytest.raises(EngineError, match=r"embed\.onnx: the weight 'w' holds NaN or infinity"):
        read_engine(path)
