"""Enrolment files: what was saved comes back; whatever lies is refused, and what was enrolled stays."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.common.arrays import write_arrays
from runtime.enrolment.file import (
    Enrolment,
    EnrolmentEncoder,
    check_encoder,
    check_enrolment_path,
    is_label,
    load_enrolment,
    save_enrolment,
)
from runtime.errors import EnrolmentError, EnrolmentMismatchError
from runtime.predictor import Predictor

from bundles import DIMENSION, ORT, Array, Tiny, TinyEngine, picture, tiny_weights, write_tiny_bundle
from python_processes import run_python, succeeded

IDENTITY = Tiny().identity
ENCODER = EnrolmentEncoder(IDENTITY, "tiny", "onnxruntime-fp32", shares_enrolments=True)


def unit(seed: int, rows: int, dimension: int = DIMENSION) -> Array:
    values = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound enrolment of three labels that fits the tiny bundle."""
    rows = {"anna": unit(1, 3), "björn": unit(2, 1), "车站 7 🚉": unit(3, 2)}
    save_enrolment(tmp_path / "lobby.enrolment", Enrolment(ENCODER, rows, 0.25))
    return tmp_path / "lobby.enrolment"


@pytest.fixture
def enrolled(predictor: Predictor) -> Iterator[Predictor]:
    """A predictor with one label and a threshold of its own; afterwards both must still be there."""
    predictor.enroll("kept", picture(1))
    predictor.threshold = 0.125
    before = predictor.embed(picture(1))
    yield predictor
    assert predictor.labels == ("kept",)
    assert predictor.threshold == 0.125
    assert predictor.predict(picture(1)).score == pytest.approx(float((before @ before.T)[0, 0]), abs=1e-5)


def arrays_of(path: Path) -> dict[str, Array]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def as_bytes(value: Any) -> Array:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def test_an_enrolment_reads_back_as_it_was_written(path: Path) -> None:
    found = load_enrolment(path)
    assert found.encoder == ENCODER
    assert found.threshold == 0.25
    assert list(found.rows) == ["anna", "björn", "车站 7 🚉"]
    for (label, rows), (seed, count) in zip(found.rows.items(), [(1, 3), (2, 1), (3, 2)], strict=True):
        np.testing.assert_array_equal(rows, unit(seed, count), err_msg=label)
        assert rows.dtype == np.float32


def test_an_empty_enrolment(tmp_path: Path, predictor: Predictor) -> None:
    predictor.save(tmp_path / "nobody.enrolment")
    predictor.enroll("anna", picture(1))
    predictor.load(tmp_path / "nobody.enrolment")
    assert predictor.labels == ()


def test_ten_thousand_rows(tmp_path: Path, predictor: Predictor) -> None:
    rows = {f"person {index:04d}": unit(index, 4) for index in range(2500)}
    save_enrolment(tmp_path / "city.enrolment", Enrolment(ENCODER, rows, None))
    predictor.load(tmp_path / "city.enrolment")
    assert predictor.labels == tuple(rows)
    predictor.save(tmp_path / "copy.enrolment")
    found = load_enrolment(tmp_path / "copy.enrolment").rows
    assert list(found) == list(rows)
    np.testing.assert_array_equal(np.concatenate(list(found.values())), np.concatenate(list(rows.values())))


def test_what_a_predictor_saves_another_one_knows(tmp_path: Path, predictor: Predictor) -> None:
    for seed, label in enumerate(["anna", "björn"]):
        predictor.enroll(label, [picture(seed), picture(seed + 10)])
    predictor.threshold = 0.75
    predictor.save(tmp_path / "lobby.enrolment")
    with Predictor(write_tiny_bundle(tmp_path / "another.edgevis")) as other:
        other.load(tmp_path / "lobby.enrolment")
        assert other.labels == ("anna", "björn")
        assert other.threshold == 0.75
        assert other.predict(picture(11)).label == "björn"
        assert other.predict(picture(11)).score == pytest.approx(1.0, abs=1e-5)


def test_a_fitted_threshold_is_fitted_again_after_loading(tmp_path: Path, predictor: Predictor) -> None:
    predictor.enroll("anna", picture(1))
    predictor.enroll("björn", picture(2))
    fitted = predictor.threshold
    predictor.save(tmp_path / "lobby.enrolment")
    assert load_enrolment(tmp_path / "lobby.enrolment").threshold is None
    predictor.forget("björn")
    predictor.threshold = 0.5
    predictor.load(tmp_path / "lobby.enrolment")
    assert predictor.threshold == fitted


def test_saving_replaces_and_a_failing_save_does_not(path: Path, predictor: Predictor) -> None:
    predictor.load(path)
    predictor.forget("anna")
    predictor.save(path)
    assert list(load_enrolment(path).rows) == ["björn", "车站 7 🚉"]
    assert list(path.parent.glob(".*")) == []
    for place in (path / "below a file", path.parent / "no folder" / "x.enrolment", path.parent):
        with pytest.raises(EnrolmentError, match=r"cannot be written: .*; what was there is unchanged"):
            predictor.save(place)


_FULL_DISK = """
import resource, sys
import numpy as np
from runtime.enrolment.file import EnrolmentEncoder, Enrolment, save_enrolment
from runtime.errors import EnrolmentError

rows = np.random.default_rng(0).standard_normal((300, 64))
rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_enrolment(sys.argv[1], Enrolment(EnrolmentEncoder("x", "tiny", "e", True), {"all": rows}, None))
except EnrolmentError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_old_enrolment(path: Path) -> None:
    before = path.read_bytes()
    message = succeeded(run_python(_FULL_DISK, path))
    assert "cannot be written: [Errno 27] File too large; what was there is unchanged" in message
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_an_enrolment_is_private_and_keeps_its_mode_and_its_link(tmp_path: Path, predictor: Predictor) -> None:
    real, link = tmp_path / "real.enrolment", tmp_path / "link.enrolment"
    link.symlink_to(real)
    predictor.enroll("anna", picture(1))
    predictor.save(link)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    real.chmod(0o640)
    predictor.enroll("björn", picture(2))
    predictor.update(link)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert list(load_enrolment(real).rows) == ["anna", "björn"]


@pytest.mark.parametrize(
    "content", [b"\xff\xd8\xff\xe0 a photograph", b"PK\3\4" + bytes(22) + b"\5\0\0\0a.jpg", b"text"]
)
def test_what_is_no_enrolment_is_not_written_over(tmp_path: Path, predictor: Predictor, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    predictor.enroll("anna", picture(1))
    for name in (path, tmp_path / "link"):
        if name != path:
            name.symlink_to(path)
        for write in (predictor.save, predictor.update, check_enrolment_path):
            with pytest.raises(EnrolmentError, match=r"not an enrolment; it is left as it is|is damaged or not an"):
                write(name)
    assert path.read_bytes() == content


def test_a_damaged_and_an_empty_enrolment_are_written_over(path: Path, predictor: Predictor) -> None:
    predictor.enroll("anna", picture(1))
    for content in (path.read_bytes()[:100], b""):
        path.write_bytes(content)
        predictor.save(path)
        assert list(load_enrolment(path).rows) == ["anna"]
    path.write_bytes(b"")
    predictor.update(path)
    assert list(load_enrolment(path).rows) == ["anna"]


def test_a_pipe_is_no_enrolment_and_nobody_waits_for_its_writer(tmp_path: Path, predictor: Predictor) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for call in (predictor.load, predictor.save, predictor.update, load_enrolment, check_enrolment_path):
        with pytest.raises(EnrolmentError, match="not a regular file"):
            call(pipe)


# Lies

GOOD_HEADER = {
    "encoder": {"identity": IDENTITY, "model": "tiny", "engine": "onnxruntime-fp32", "shares_enrolments": True},
    "threshold": None,
    "schema": 1,
}


def with_nan() -> Array:
    rows = unit(1, 6)
    rows[3, 3] = np.nan
    return rows


NOT_UNIT = "does not fit this model: .* not a row of length one"
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "future schema": ({"header": as_bytes({**GOOD_HEADER, "schema": 2})}, "has enrolment schema 2; this version"),
    "no schema": ({"header": as_bytes({})}, "has enrolment schema None"),
    "schema nested": ({"header": as_bytes({"schema": [[[1]]]})}, "has enrolment schema"),
    "header a list": ({"header": as_bytes([1])}, "has enrolment schema None"),
    "header not JSON": ({"header": np.frombuffer(b"{", np.uint8)}, "not JSON"),
    "header not UTF-8": ({"header": np.frombuffer(b"\xff\xff", np.uint8)}, "not JSON"),
    "header nested": ({"header": np.frombuffer(b"[" * 100_000, np.uint8)}, "not JSON"),
    "header text": ({"header": np.array("{}")}, "header has dtype <U2"),
    "header numbers": ({"header": np.zeros(3)}, "header has dtype float64"),
    "header dates": ({"header": np.zeros(2, "datetime64[s]")}, "header has dtype datetime64"),
    "header records": ({"header": np.zeros(2, [("a", "u1")])}, "header has dtype"),
    "header unknown field": ({"header": as_bytes({**GOOD_HEADER, "more": 1})}, "unknown field 'more'"),
    "header without encoder": ({"header": as_bytes({"schema": 1, "threshold": None})}, "field 'encoder' is missing"),
    "threshold text": ({"header": as_bytes({**GOOD_HEADER, "threshold": "0.5"})}, "threshold: float is needed"),
    "threshold NaN": ({"header": as_bytes({**GOOD_HEADER, "threshold": float("nan")})}, "NaN is not a finite number"),
    "threshold beyond": ({"header": as_bytes({**GOOD_HEADER, "threshold": 1.5})}, "its threshold is 1.5; a cosine"),
    "labels an object": ({"labels": as_bytes({"a": 1, "b": 2, "c": 3})}, "do not fit together"),
    "labels numbers": ({"labels": as_bytes([1, 2, 3])}, "do not fit together"),
    "labels lists": ({"labels": as_bytes([["a"], ["b"], ["c"]])}, "do not fit together"),
    "labels twice": ({"labels": as_bytes(["a", "a", "b"])}, "do not fit together"),
    "labels too few": ({"labels": as_bytes(["a", "b"])}, "do not fit together"),
    "labels empty": ({"labels": as_bytes(["a", "", "b"])}, "do not fit together"),
    "labels control": ({"labels": as_bytes(["a", "b\n", "c"])}, "do not fit together"),
    "labels surrogate": ({"labels": as_bytes(["a", "\ud800", "c"])}, "do not fit together"),
    "labels long": ({"labels": as_bytes(["a", "b" * 257, "c"])}, "do not fit together"),
    "counts sum": ({"counts": np.array([3, 2, 2])}, "do not fit together"),
    "counts zero": ({"counts": np.array([3, 0, 3])}, "do not fit together"),
    "counts negative": ({"counts": np.array([-1, 5, 2])}, "do not fit together"),
    "counts overflow": ({"counts": np.array([2**63 - 1, 2**63 - 1, 8])}, "do not fit together"),
    "counts floats": ({"counts": np.array([3.0, 1.0, 2.0])}, "do not fit together"),
    "counts int32": ({"counts": np.array([3, 1, 2], np.int32)}, "do not fit together"),
    "counts matrix": ({"counts": np.array([[3, 1, 2]])}, "do not fit together"),
    "counts scalar": ({"counts": np.array(6)}, "do not fit together"),
    "embeddings NaN": ({"embeddings": with_nan()}, "do not fit together"),
    "embeddings infinite": ({"embeddings": np.full((6, DIMENSION), np.inf, np.float32)}, "do not fit together"),
    "embeddings huge": ({"embeddings": np.full((6, DIMENSION), 3e38, np.float32)}, NOT_UNIT),
    "embeddings zero": ({"embeddings": np.zeros((6, DIMENSION), np.float32)}, NOT_UNIT),
    "embeddings not unit": ({"embeddings": unit(1, 6) * 1.01}, NOT_UNIT),
    "embeddings doubles": ({"embeddings": unit(1, 6).astype(np.float64)}, "do not fit together"),
    "embeddings flat": ({"embeddings": unit(1, 6).ravel()}, "do not fit together"),
    "embeddings scalar": ({"embeddings": np.array(1, np.float32)}, "do not fit together"),
    "embeddings fewer": ({"embeddings": unit(1, 5)}, "do not fit together"),
    "embeddings of another size": ({"embeddings": unit(1, 6, 9)}, "does not fit this model: embeddings of shape"),
    "embeddings big-endian": ({"embeddings": unit(1, 6).astype(">f4")}, "do not fit together"),
    **{
        f"no {name}": ({name: None}, f"it has no array '{name}'")
        for name in ("header", "labels", "counts", "embeddings")
    },
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_and_what_is_enrolled_stays(path: Path, enrolled: Predictor, lie: str) -> None:
    changes, message = LIES[lie]
    arrays = {name: array for name, array in {**arrays_of(path), **changes}.items() if array is not None}
    write_arrays(path, arrays)
    with pytest.raises(EnrolmentError, match=message) as caught:
        enrolled.load(path)
    assert not isinstance(caught.value, EnrolmentMismatchError)
    assert path.name in str(caught.value)


def test_a_missing_or_foreign_file(path: Path, enrolled: Predictor) -> None:
    missing = path.parent / "missing.enrolment"
    with pytest.raises(EnrolmentError, match="there is no file"):
        enrolled.load(missing)
    missing.write_bytes(b"")
    with pytest.raises(EnrolmentError, match=r"is damaged or not an \.npz file"):
        enrolled.load(missing)
    with zipfile.ZipFile(missing, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(EnrolmentError, match=r"is damaged or not an \.npz file"):
        enrolled.load(missing)
    write_arrays(missing, {"pixels": np.zeros(3)})
    with pytest.raises(EnrolmentError, match="is not an enrolment: it has no array 'header'"):
        enrolled.load(missing)


def test_truncated_files(path: Path, enrolled: Predictor) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 61):
        path.write_bytes(whole[:size])
        with pytest.raises(EnrolmentError, match="damaged"):
            enrolled.load(path)


@given(text=st.text(st.sampled_from('{}[]":,0123456789.eE-+ntrufalsschemeoidgnl\\'), max_size=60))
@settings(max_examples=100)
def test_fuzzed_headers(path: Path, text: str) -> None:
    write_arrays(path, {**arrays_of(path), "header": np.frombuffer(text.encode(), np.uint8)})
    with pytest.raises(EnrolmentError):
        load_enrolment(path)


# Whose embeddings


def test_an_enrolment_of_another_encoder(tmp_path: Path, path: Path) -> None:
    other = Tiny(weights=tiny_weights(1))
    with Predictor(write_tiny_bundle(tmp_path / "other.edgevis", other)) as predictor:
        made_by, running = Tiny().identity[:12], other.identity[:12]
        message = rf"made by another encoder \(tiny, {made_by}\); this one is tiny, {running}.*Enrol again from the"
        with pytest.raises(EnrolmentMismatchError, match=message) as caught:
            predictor.load(path)
        assert isinstance(caught.value, EnrolmentError)
        assert predictor.labels == ()


@pytest.mark.parametrize("saved_shares", [True, False])
@pytest.mark.parametrize("running_shares", [True, False])
def test_engines_share_an_enrolment_where_the_build_measured_that_they_may(
    tmp_path: Path, saved_shares: bool, running_shares: bool
) -> None:
    engines = [
        TinyEngine(shares_enrolments=saved_shares),
        TinyEngine(precision="int8", shares_enrolments=running_shares),
    ]
    bundle = write_tiny_bundle(tmp_path / "both.edgevis", Tiny(engines=engines))
    file = tmp_path / "lobby.enrolment"
    with Predictor(bundle, precision="fp32") as fp32:
        fp32.enroll("anna", picture(1))
        fp32.save(file)
        fp32.load(file)  # an engine always knows its own
    with Predictor(bundle, precision="int8") as int8:
        if saved_shares and running_shares:
            int8.load(file)
            assert int8.labels == ("anna",)
            assert 0.99 < int8.predict(picture(1)).score < 1.0
        else:
            message = (
                r"made by the engine onnxruntime-fp32; this one is onnxruntime-int8, and the build did not measure"
            )
            with pytest.raises(EnrolmentMismatchError, match=message):
                int8.load(file)
            assert int8.labels == ()


def test_check_encoder_accepts_its_own() -> None:
    alone = EnrolmentEncoder(IDENTITY, "tiny", ORT.name, shares_enrolments=False)
    check_encoder(alone, alone, "lobby.enrolment")
    with pytest.raises(EnrolmentMismatchError):
        check_encoder(
            alone, EnrolmentEncoder(IDENTITY, "tiny", "openvino-int8", shares_enrolments=True), "lobby.enrolment"
        )


@given(st.text(max_size=12))
def test_every_allowed_label_survives_a_file(path: Path, label: str) -> None:
    if not is_label(label):
        assert not label or not label.isprintable() or label.isspace()
        return
    save_enrolment(path, Enrolment(ENCODER, {label: unit(1, 1)}, None))
    assert list(load_enrolment(path).rows) == [label]
