"""The manifest is read as an attacker's: whatever it holds, only the errors that are documented come out."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle.bundle import MANIFEST, Bundle
from runtime.bundle.identity import DIGEST, manifest_digest
from runtime.bundle.manifest import Calibration, Manifest
from runtime.common.json_data import from_json, to_json
from runtime.errors import BackendError, BundleError, IntegrityError, SchemaError
from runtime.predictor import Predictor

from bundles import Tiny, TinyEngine, json_paths, mutate, picture, signed, write_tiny_bundle
from logs import ignored_warnings

WHOLE = Tiny(engines=[TinyEngine(), TinyEngine(precision="int8", latency_ms=None, with_parity=False)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest the tests overwrite."""
    return write_tiny_bundle(tmp_path_factory.mktemp("manifest") / "tiny.edgevis", WHOLE)


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    """The manifest's JSON data with every optional field filled; tests change copies of it."""
    manifest = Bundle(folder).manifest
    calibration = Calibration("ab" * 32, 64, "made in code", "min-max")
    full = dataclasses.replace(manifest, calibration=calibration)
    return dict(json.loads(full.dumps()))


def paths(data: dict[str, Any]) -> list[tuple[str | int, ...]]:
    # What is below postprocess belongs to the task; test_predictor_faults.py has its lies. What the manifest is known
    # by is computed anew for each change, see test_digest.py.
    known_by = ("encoder_identity", DIGEST)
    return [
        path
        for path in json_paths(data)
        if path[:3] != ("deployment", "postprocess", "open_set") and path[0] not in known_by
    ]


def loads(data: dict[str, Any]) -> Manifest:
    return Manifest.loads(json.dumps(signed(data)))


def test_the_full_manifest_reads_back(data: dict[str, Any]) -> None:
    manifest = loads(data)
    assert manifest.calibration == Calibration("ab" * 32, 64, "made in code", "min-max")
    assert to_json(manifest) == data
    assert manifest.digest == manifest_digest(data)
    assert Manifest.loads(manifest.dumps()) == manifest


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\xfa",
        b'"text"',
        b"[]",
        b"1",
        b"null",
        b"[" * 200_000,
        b'{"schema": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda text: repr(text[:16]),
)
def test_what_is_not_a_json_object(text: bytes) -> None:
    with pytest.raises(SchemaError, match=r"is not JSON|must hold a JSON object"):
        Manifest.loads(text)


@pytest.mark.parametrize("schema", [0, 3, 99, -1, 10**400, "1", None, True, 1.0, [1], {}])
def test_another_schema_is_refused(data: dict[str, Any], schema: object) -> None:
    with pytest.raises(SchemaError, match="schema"):
        loads({**data, "schema": schema})


def test_a_future_schema_says_what_to_do(data: dict[str, Any]) -> None:
    message = "has schema 3; this version of edgevis reads 1 and 2: build the bundle again with: python -m export.build"
    with pytest.raises(SchemaError, match=message):
        loads({**data, "schema": 3, "a field of the future": 1})


def test_a_manifest_without_schema(data: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="has schema None"):
        loads({key: value for key, value in data.items() if key != "schema"})


def test_an_unknown_field_is_refused_in_every_object(data: dict[str, Any]) -> None:
    free = ("files", "tools", "postprocess", "open_set", "options")  # mappings with names of their own
    objects = [path for path in paths(data) if path[-1] not in free and isinstance(_at(data, path), dict)]
    assert len(objects) > 10
    for path in objects:
        changed = copy.deepcopy(data)
        _at(changed, path)["surprise"] = 1
        with pytest.raises(SchemaError, match=r"surprise|is needed, got 1"):
            loads(changed)


def test_a_missing_field_is_refused_where_it_is_needed(data: dict[str, Any]) -> None:
    refused = set()
    for path in paths(data):
        parent = _at(data, path[:-1])
        if not isinstance(parent, dict):
            continue
        changed = copy.deepcopy(data)
        del _at(changed, path[:-1])[path[-1]]
        with suppress(SchemaError):
            loads(changed)
            continue
        refused.add(path[-1])
    assert {"name", "deployment", "height", "engines", "files", "sha256", "passed", "shape", "algorithm"} <= refused
    assert not {"tools", "calibration", "latency_ms", "decisions", "fit"} & refused


# One value of every kind that JSON has, and the hard ones of each kind.
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    10**400,
    -(10**400),
    1.5,
    1e308,
    5e-324,
    "",
    "x",
    "../x",
    "\ud800",
    "x" * 10_000,
    [],
    [[]],
    [None],
    {},
    {"": None},
]


def test_a_value_of_another_type_is_refused_everywhere(data: dict[str, Any]) -> None:
    nullable = {"latency_ms", "parity", "decisions", "mean_cosine", "calibration"}
    for path in paths(data):
        if path[:2] == ("deployment", "postprocess") and len(path) > 2:
            continue
        right = _at(data, path)
        for value in VALUES:
            # An int is a float to JSON; a dimension is an int or a name.
            if isinstance(value, type(right)) or (type(value) is int and isinstance(right, float)):
                continue
            if path[-2:-1] == ("shape",) or (value is None and path[-1] in nullable) or right is None:
                continue
            changed = copy.deepcopy(data)
            mutate(changed, path, lambda _, value=value: value)
            with pytest.raises(SchemaError):
                loads(changed)


def test_no_value_anywhere_gets_another_error_out(folder: Path, data: dict[str, Any]) -> None:
    """Bundle refuses it or takes it; when it takes it, Predictor does likewise."""
    taken = 0
    for path in paths(data):
        for value in VALUES:
            changed = copy.deepcopy(data)
            mutate(changed, path, lambda _, value=value: value)
            taken += _opens(folder, json.dumps(signed(changed)), run=path[0] in ("deployment", "engines"))
    assert taken > 100  # names, versions and the like are free


def test_no_change_of_a_number_gets_another_error_out(folder: Path, data: dict[str, Any]) -> None:
    for path in paths(data):
        right = _at(data, path)
        if isinstance(right, (int, float)):
            for factor in (-1, 0, 2, 1e300, 1e-300):
                changed = copy.deepcopy(data)
                mutate(changed, path, lambda value, factor=factor: type(value)(value * factor))
                _opens(folder, json.dumps(signed(changed)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(choice=st.data())
@settings(max_examples=300)
def test_fuzzed_manifests(folder: Path, data: dict[str, Any], choice: st.DataObject) -> None:
    changed = copy.deepcopy(data)
    for _ in range(choice.draw(st.integers(1, 3))):
        path = choice.draw(st.sampled_from(list(json_paths(changed)) or [("name",)]))
        parent = _at(changed, path[:-1])
        action = choice.draw(st.sampled_from(["replace", "delete", "add", "swap"]))
        if action == "delete":
            del parent[path[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent[choice.draw(st.text(max_size=8))] = choice.draw(_JSON)
        elif action == "swap":
            parent[path[-1]] = copy.deepcopy(_at(changed, choice.draw(st.sampled_from(list(json_paths(changed))))))
        else:
            parent[path[-1]] = choice.draw(_JSON)
    _opens(folder, json.dumps(signed(changed)))


@given(text=st.binary(max_size=64) | st.text(max_size=64).map(lambda text: text.encode(errors="ignore")))
def test_fuzzed_bytes(text: bytes) -> None:
    with pytest.raises(SchemaError):
        Manifest.loads(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["latency_ms", "scale", "false_accept_rate"])
def test_numbers_that_json_does_not_have(data: dict[str, Any], number: str, field: str) -> None:
    changed = copy.deepcopy(data)
    changed["engines"][0]["latency_ms"] = "NUMBER" if field == "latency_ms" else 1.0
    changed["deployment"]["preprocess"]["scale"] = "NUMBER" if field == "scale" else 1.0
    changed["deployment"]["postprocess"]["false_accept_rate"] = "NUMBER" if field == "false_accept_rate" else 0.1
    with pytest.raises(SchemaError, match=r"NaN|Infinity|nan|inf|finite"):
        Manifest.loads(json.dumps(changed).replace('"NUMBER"', number))


def test_deeply_nested_values_are_refused_at_every_depth(data: dict[str, Any]) -> None:
    # Near the interpreter's own limit, reading succeeds and printing what was read does not.
    for depth in range(0, sys.getrecursionlimit() + 50, 7):
        text = json.dumps({**data, "name": "NESTED"}).replace('"NESTED"', "[" * depth + "1" + "]" * depth)
        with pytest.raises(SchemaError):
            Manifest.loads(text)


def test_messages_name_the_place_and_what_was_found(data: dict[str, Any]) -> None:
    cases: list[tuple[tuple[str | int, ...], Any, str]] = [
        (
            ("deployment", "preprocess", "height"),
            "32",
            r"manifest\.deployment\.preprocess\.height: int is needed, got '32'",
        ),
        (("engines", 1, "precision"), "fp8", r"manifest\.engines\[1\]\.precision: one of fp32, fp16, bf16, int8"),
        (("deployment", "preprocess", "mean"), [0, 0], r"preprocess: mean is .*, allowed for RGB: 3 finite"),
        (("deployment", "graphs", 0, "inputs", 0, "shape", 1), 1.5, r"shape\[1\]: int or str is needed, got 1\.5"),
        (("deployment", "graphs", 0, "inputs", 0, "shape", 1), None, r"shape\[1\]: int or str is needed, got None"),
        (("deployment", "preprocess", "std"), [1, 0, 1], r"std is \(1\.0, 0\.0, 1\.0\), allowed > 0"),
        (("deployment", "task"), "te st", "task name 'te st' is not allowed"),
        (("name",), ["x" * 1000], r"name: str is needed, got .{60,80}$"),
    ]
    for path, value, message in cases:
        changed = copy.deepcopy(data)
        mutate(changed, path, lambda _, value=value: value)
        with pytest.raises(SchemaError, match=message):
            loads(changed)


def test_engines_must_be_distinct_and_cover_the_graphs(data: dict[str, Any]) -> None:
    twice = {**data, "engines": [data["engines"][0]] * 2}
    with pytest.raises(SchemaError, match="an engine is listed twice"):
        loads(twice)
    for files in ({}, {"other": "x"}, {**data["engines"][0]["files"], "other": "x"}):
        with pytest.raises(SchemaError, match=r"has the graphs .* the model has \['embed'\]"):
            loads({**data, "engines": [{**data["engines"][0], "files": files}]})


@pytest.mark.parametrize("record", [{"size_bytes": -1}, {"sha256": "AB" * 32}, {"sha256": "ab" * 31}])
def test_file_records_in_range(data: dict[str, Any], record: dict[str, Any]) -> None:
    name, whole = next(iter(data["files"].items()))
    with pytest.raises(SchemaError, match="allowed"):
        loads({**data, "files": {name: {**whole, **record}}})


def test_a_task_of_another_version(folder: Path, data: dict[str, Any]) -> None:
    changed = {**data, "deployment": {**data["deployment"], "task": "count_sheep"}}
    (folder / MANIFEST).write_text(json.dumps(signed(changed)))
    with pytest.raises(SchemaError, match=r"no task 'count_sheep'; known: classify.*segment: a newer edgevis"):
        Predictor(folder)


@dataclasses.dataclass(frozen=True)
class _Everything:
    text: str
    truth: bool
    whole: int
    real: float
    maybe: float | None
    pair: tuple[int, str]
    many: tuple[float, ...] = ()


@given(
    st.builds(
        _Everything,
        text=st.text(),
        truth=st.booleans(),
        whole=st.integers(),
        real=st.floats(allow_nan=False, allow_infinity=False),
        maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        pair=st.tuples(st.integers(), st.text()),
        many=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
    )
)
def test_frozen_data_survives_json(value: _Everything) -> None:
    assert from_json(_Everything, json.loads(json.dumps(to_json(value)))) == value


def _at(data: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def _quietly_opened(folder: Path) -> Predictor:
    with ignored_warnings(match="did not open"):
        return Predictor(folder, threads=1)


def _opens(folder: Path, text: str, *, run: bool = True) -> bool:
    """Whether a bundle with this manifest opens and embeds a picture; fails on an undocumented error."""
    (folder / MANIFEST).write_text(text)
    try:
        bundle = Bundle(folder)
    except (SchemaError, IntegrityError):
        return False
    try:
        bundle.verify_files()
    except IntegrityError:
        return False
    preprocess = bundle.manifest.deployment.preprocess
    if not run or max(preprocess.height, preprocess.width) > 512:
        return True
    try:
        with _quietly_opened(folder) as predictor:
            predictor.enroll("one", picture(1))
            assert predictor.predict(picture(1)).label in ("one", None)
            assert predictor.info.to_dict()["model"] == bundle.manifest.model
    except (BundleError, BackendError):
        return False  # but no InputError: the picture is right, the bundle is wrong
    return True
