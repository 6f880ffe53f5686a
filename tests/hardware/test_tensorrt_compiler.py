"""The compiler of the TensorRT family, with TensorRT-RTX, which builds without a GPU; and what a build is told."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from onnx import ModelProto, parser

from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.compiler import BuiltPlan, build_engine
from runtime.backends._tensorrt.spec import MAX_SPEC_BYTES, BuildSpec
from runtime.common.extras import install_command
from runtime.errors import CompileError, MissingDependencyError, SchemaError

PROFILES = {"x": ((1, 4), (2, 4), (8, 4))}


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for x86-64 only")


def model_of(body: str = "y = Relu (x)") -> bytes:
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}'
    model: ModelProto = parser.parse_model(text)
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    return model.SerializeToString()


def build(model: bytes, **settings: Any) -> BuiltPlan:
    given = {"profiles": PROFILES, "compute_capabilities": ("SM86",), **settings}
    return build_engine(model, BuildSpec(**given), flavour="tensorrt_rtx")


@pytest.mark.usefixtures("rtx")
def test_a_plan_is_built_for_gpus_that_are_not_here() -> None:
    built = build(model_of(), compute_capabilities=("SM80", "SM86", "SM89", "SM120"))
    assert len(built.plan) > 1000
    assert built.timing_cache == b"", "TensorRT-RTX measures nothing when it builds"


@pytest.mark.usefixtures("rtx")
def test_every_setting_is_taken() -> None:
    settings = {"workspace_bytes": 1 << 20, "optimization_level": 1, "tf32": True}
    assert len(build(model_of(), **settings).plan) > 1000


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (b"no model", {}, "cannot parse the graph"),
        (model_of("y = NoSuchThing (x)"), {}, r"cannot parse the graph: node 'node_0' \(NoSuchThing\)"),
        (model_of(), {"compute_capabilities": ("SM01",)}, r"no compute capability 'SM01'; it has .*SM86"),
        (model_of(), {"profiles": {"z": PROFILES["x"]}}, r"shapes for \['z'\]; the graph's inputs are \['x'\]"),
        (model_of(), {"profiles": {"x": ((1, 4, 1),) * 3}}, r"'x' the shape \(1, 4, 1\); the graph takes \(-1, 4\)"),
        (model_of(), {"profiles": {"x": ((1, 5),) * 3}}, r"'x' the shape \(1, 5\); the graph takes \(-1, 4\)"),
    ],
)
def test_refusals_say_what_and_where(model: bytes, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        build(model, **settings)


@pytest.mark.usefixtures("rtx")
def test_types_are_strong() -> None:
    """Two float types do not meet without a cast: nothing is converted behind the graph's back."""
    mixed = model_of("h = Cast <to: int = 10> (x) s = Add (h, x) y = Cast <to: int = 1> (s)")
    with pytest.raises(CompileError, match="node_1"):
        build(mixed)


@pytest.mark.parametrize(
    ("flavour", "modules", "extra"),
    [
        ("tensorrt", ["tensorrt"], "tensorrt"),
        ("tensorrt_rtx", ["tensorrt_rtx", "tensorrt_rtx_bindings"], "tensorrt-rtx"),
    ],
)
def test_a_missing_package_names_the_cure(
    flavour: vendor.Flavour, modules: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command(extra))):
        vendor.version(flavour)


# --- the specification


def test_a_spec_survives_json() -> None:
    spec = BuildSpec(
        {"image": ((1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8)), "mask": ((1, 8, 8), (1, 8, 8), (8, 8, 8))},
        workspace_bytes=1 << 30,
        compute_capabilities=("SM80", "SM120"),
        version_compatible=True,
    )
    assert BuildSpec.loads(spec.dumps()) == spec
    assert BuildSpec.loads(spec.dumps().encode()).dumps() == spec.dumps()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profiles": {}}, "profiles is empty"),
        ({"profiles": {"x": [[1, 4], [2, 4]]}}, "an array of 3 is needed"),
        ({"profiles": {"x": [[1, 4], [2, 4], [8]]}}, "allowed: one rank"),
        ({"profiles": {"x": [[2, 4], [1, 4], [8, 4]]}}, "min <= opt <= max"),
        ({"profiles": {"x": [[0, 4], [1, 4], [8, 4]]}}, "1 <= min"),
        ({"profiles": {"x": [[1], [1], [1 << 40]]}}, "min <= opt <= max"),
        ({"profiles": {"x": [[1.5], [2], [2]]}}, "int is needed"),
        ({"workspace_bytes": 0}, "workspace_bytes is 0"),
        ({"optimization_level": 6}, "optimization_level is 6"),
        ({"compute_capabilities": ["8.6"]}, "compute capability '8.6'"),
        ({"tf32": 1}, "bool is needed"),
        ({"plugins": ["evil.so"]}, "unknown field 'plugins'"),
        ({"schema": 2}, "schema 1 is needed"),
    ],
)
def test_a_wrong_spec_is_refused(change: dict[str, Any], message: str) -> None:
    data = {**json.loads(BuildSpec(PROFILES).dumps()), **change}
    with pytest.raises(SchemaError, match=message):
        BuildSpec.loads(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", '{"schema": NaN}', " " * (MAX_SPEC_BYTES + 1)])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SchemaError):
        BuildSpec.loads(text)
