"""A wrong declaration fails where it is written, with what was given and what is allowed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from runtime.bundle.identity import encoder_identity
from runtime.bundle.spec import MAX_RANK, MAX_SIDE, Deployment, Graph, Preprocess, TensorSpec
from runtime.common.json_data import from_json, to_json
from runtime.errors import SchemaError

from bundles import MATCH

IMAGE = TensorSpec("image", "float32", ("N", 3, 32, 16))
ROWS = TensorSpec("embedding", "float32", ("N", 8))
GRAPH = Graph("embed", (IMAGE,), (ROWS,))
ADAPT = Graph(
    "adapt",
    (TensorSpec("rows", "float32", (1, "labels", 8)),),
    (TensorSpec("adapted", "float32", (1, "labels", 8)),),
    set_of="embed/embedding",
)
DEPLOYMENT = Deployment("reid", (GRAPH, MATCH), Preprocess(32, 16))


def test_a_declaration_survives_json() -> None:
    for value in (IMAGE, GRAPH, ADAPT, Preprocess(32, 16, "BGR", fit="letterbox"), DEPLOYMENT):
        assert from_json(type(value), json.loads(json.dumps(to_json(value)))) == value


def test_graphs_over_a_set_come_last() -> None:
    deployment = dataclasses.replace(DEPLOYMENT, graphs=(GRAPH, ADAPT))
    assert (deployment.image_graphs, deployment.set_graphs) == ((GRAPH,), (ADAPT,))
    with pytest.raises(SchemaError, match=r"graphs over a set must be the last of \['adapt', 'embed'\]"):
        dataclasses.replace(DEPLOYMENT, graphs=(ADAPT, GRAPH))
    with pytest.raises(SchemaError, match=r"none of the graphs \['adapt'\] takes an image"):
        dataclasses.replace(DEPLOYMENT, graphs=(ADAPT,))
    wrong = dataclasses.replace(ADAPT, set_of="embed/rows")
    with pytest.raises(SchemaError, match=r"set_of is 'embed/rows' for .*'labels', 8.*: an output .* embed/embedding"):
        dataclasses.replace(DEPLOYMENT, graphs=(GRAPH, wrong))
    with pytest.raises(SchemaError, match=r"set_of is 'embed/embedding', .* one input and one output, .*labels"):
        dataclasses.replace(GRAPH, set_of="embed/embedding")


def test_the_identity_of_models_without_sets_is_the_former_one() -> None:
    data = to_json(DEPLOYMENT)
    before = {**data, "graphs": [{k: v for k, v in graph.items() if k != "set_of"} for graph in data["graphs"]]}
    assert encoder_identity("net", data, "0" * 64) == encoder_identity("net", before, "0" * 64)
    with_set = to_json(dataclasses.replace(DEPLOYMENT, graphs=(GRAPH, ADAPT)))
    alone = to_json(dataclasses.replace(DEPLOYMENT, graphs=(GRAPH,)))
    assert encoder_identity("net", with_set, "0" * 64) != encoder_identity("net", alone, "0" * 64)


def test_what_batched_means() -> None:
    assert IMAGE.batched
    assert not TensorSpec("support", "float32", ("K", 4)).batched
    assert not TensorSpec("fixed", "float32", (1, 4)).batched


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((1, 3, 32, 16), True),
        ((99, 3, 32, 16), True),
        ((0, 3, 32, 16), False),
        ((1, 3, 32), False),
        ((1, 3, 32, 16, 1), False),
        ((1, 3, 16, 32), False),
        ((), False),
    ],
)
def test_which_shapes_fit(shape: tuple[int, ...], fits: bool) -> None:
    assert IMAGE.fits(shape) == fits


def test_graphs_are_found_by_name() -> None:
    assert DEPLOYMENT.graph("embed") is GRAPH
    with pytest.raises(SchemaError, match=r"no graph 'encode'; this model has \['embed', 'match'\]"):
        DEPLOYMENT.graph("encode")


@pytest.mark.parametrize("name", ["a", "image", "A1", "layer4.0-out_x", "x" * 64])
def test_names_that_are_allowed(name: str) -> None:
    assert TensorSpec(name, "float32", (1,)).name == name


@pytest.mark.parametrize("name", ["", "1st", "_x", ".x", "a b", "a/b", "../a", "é", "a\n", "x" * 65, "nul\0", 3, None])
def test_names_that_are_not(name: Any) -> None:
    message = r"name .* is not allowed: a letter, then letters, digits, '_', '\.', '-', at most 64"
    for make in (
        lambda: TensorSpec(name, "float32", (1,)),
        lambda: Graph(name, (IMAGE,), (ROWS,)),
        lambda: Deployment(name, (GRAPH,), Preprocess(1, 1)),
    ):
        with pytest.raises(SchemaError, match=message):
            make()
    if isinstance(name, str):
        with pytest.raises(SchemaError, match=message):
            TensorSpec("x", "float32", (name,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, "dtype is 'float64'; allowed: float32, float16, int64, int32, uint8, bool"),
        ({"shape": ()}, f"rank 0, allowed 1..{MAX_RANK}"),
        ({"shape": (1,) * (MAX_RANK + 1)}, f"rank {MAX_RANK + 1}, allowed"),
        ({"shape": (0,)}, "axis of size 0, allowed >= 1"),
        ({"shape": (-3,)}, "axis of size -3"),
        ({"shape": (True,)}, "axis of size True"),
        ({"shape": (1.5,)}, r"axis of size 1\.5"),
    ],
)
def test_tensors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        dataclasses.replace(IMAGE, **changes)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((), (ROWS,), "graph 'embed' needs inputs and outputs"),
        ((IMAGE,), (), "graph 'embed' needs inputs and outputs"),
        ((IMAGE, IMAGE), (ROWS,), "names a tensor twice"),
        ((IMAGE,), (IMAGE,), r"names a tensor twice: \['image', 'image'\]"),
    ],
)
def test_graphs(inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Graph("embed", inputs, outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, f"height is 0, allowed 1..{MAX_SIDE}"),
        ({"width": MAX_SIDE + 1}, f"width is {MAX_SIDE + 1}, allowed 1..{MAX_SIDE}"),
        ({"height": 32.0}, r"height is 32\.0"),
        ({"height": True}, "height is True"),
        ({"color": "rgb"}, "color is 'rgb'; allowed: RGB, BGR"),
        ({"fit": "pad"}, "fit is 'pad'; allowed: stretch, letterbox, center-crop"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'; allowed: nearest, linear, cubic, area"),
        ({"scale": 0}, "scale is 0, allowed > 0"),
        ({"scale": -1.0}, "allowed > 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"scale": 10**400}, "scale is 1000"),
        ({"scale": True}, "scale is True"),
        ({"mean": (0.0, 0.0)}, "mean is .*, allowed for RGB: 3 finite numbers"),
        ({"mean": (0.0, 0.0, float("inf"))}, "mean is .*, allowed for RGB: 3 finite numbers"),
        ({"std": (1.0, 1.0, "1")}, "std is .*, allowed for RGB: 3 finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std is .*, allowed > 0"),
        ({"std": (1.0, -1.0, 1.0)}, "std is .*, allowed > 0"),
        ({"std": (1.0, 1e-300, 1.0)}, "make values beyond float32"),
        ({"scale": 1e300}, "make values beyond float32"),
        ({"color": "GRAY", "mean": (0.0, 0.0, 0.0)}, "mean is .*, allowed for GRAY: 1 finite numbers"),
        ({"scale": 1e308, "mean": (1e308, 0.0, 0.0)}, "make values beyond float32"),
        ({"mean": (0.0, -1e39, 0.0)}, "make values beyond float32"),
        ({"pad_value": 256}, r"pad_value is 256, allowed 0\.\.255"),
        ({"pad_value": -1}, "pad_value is -1"),
        ({"pad_value": 1.0}, r"pad_value is 1\.0"),
    ],
)
def test_preprocessing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        dataclasses.replace(Preprocess(32, 16), **changes)


def test_the_limits_themselves_are_allowed() -> None:
    assert Preprocess(1, MAX_SIDE, pad_value=255).width == MAX_SIDE
    assert Preprocess(MAX_SIDE, 1, pad_value=0).height == MAX_SIDE
    assert TensorSpec("x", "bool", (1,) * MAX_RANK).dtype == "bool"
    assert Deployment("reid", (GRAPH,), Preprocess(1, 1), max_batch=4096).max_batch == 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graphs": ()}, r"graphs must be named and distinct, got \[\]"),
        ({"graphs": (GRAPH, GRAPH)}, r"graphs must be named and distinct, got \['embed', 'embed'\]"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_batch": 4097}, "max_batch is 4097"),
        ({"max_batch": True}, "max_batch is True"),
        ({"postprocess": []}, r"postprocess is \[\], allowed: a JSON object"),
        ({"postprocess": {1: 2}}, "allowed: a JSON object"),
    ],
)
def test_deployments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        dataclasses.replace(DEPLOYMENT, **changes)


def test_declarations_are_frozen() -> None:
    for value, field in [(IMAGE, "name"), (GRAPH, "name"), (Preprocess(1, 1), "height"), (DEPLOYMENT, "task")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, "other")
