"""Which engine runs, and what is said when the best one cannot."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import (
    BackendError,
    EngineError,
    IntegrityError,
    UnavailableError,
    UnknownBackendError,
)
from runtime.predictor import Predictor
from runtime.selection.info import Info

from bundles import ORT, Tiny, TinyEngine, edited_manifest, expected_rows, picture, replace_file, write_tiny_bundle
from logs import WATCH, logged_warnings

INT8 = TinyEngine(precision="int8", latency_ms=0.5)
FP32_FILE, INT8_FILE = "engines/onnxruntime-fp32/embed.onnx", "engines/onnxruntime-int8/embed.onnx"


def bundle_of(folder: Path, engines: Sequence[TinyEngine]) -> Path:
    return write_tiny_bundle(folder / "some.edgevis", Tiny(engines=engines))


def info(bundle: Path, **arguments: str | int | None) -> Info:
    with Predictor(bundle, **arguments) as predictor:  # type: ignore[arg-type]
        predictor.warmup()
        return predictor.info


def break_engine(bundle: Path, name: str) -> None:
    """The engine file is damaged and the manifest agrees with it: hashes hold, only the vendor can tell."""
    replace_file(bundle, name, b"this is no model")


def add_engine(bundle: Path, **changes: object) -> None:
    """One more record in the manifest, of the first engine's file."""
    with edited_manifest(bundle) as data:
        data["engines"].append({**data["engines"][0], **changes})


def test_the_fastest_wins(tmp_path: Path) -> None:
    for fp32_ms, int8_ms, wanted in [(2.0, 1.0, "int8"), (1.0, 2.0, "fp32")]:
        engines = [replace(ORT, latency_ms=fp32_ms), replace(INT8, latency_ms=int8_ms)]
        found = info(bundle_of(tmp_path, engines))
        assert (found.backend, found.device, found.precision) == ("onnxruntime", "cpu", wanted)
        assert found.why == "the fastest of 2 by the build's 1.00 ms per image; parity held"
        assert found.skipped == ()


def test_a_measured_engine_goes_before_a_faster_one_that_is_not(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=9.0), replace(INT8, latency_ms=0.1, with_parity=False)])
    assert info(bundle).precision == "fp32"
    assert info(bundle, precision="int8").precision == "int8"
    assert info(bundle, precision="int8").parity is None


def test_an_engine_that_failed_its_proof_is_not_taken_unasked(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=9.0), INT8])
    with edited_manifest(bundle) as data:
        data["engines"][1]["parity"]["passed"] = False
    assert info(bundle).precision == "fp32"


def test_a_measured_engine_goes_before_one_that_is_not(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=None), replace(INT8, latency_ms=100.0)])
    assert info(bundle).precision == "int8"


def test_engines_that_were_have_neither_latency_nor_parity(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(engine, latency_ms=None, with_parity=False) for engine in (ORT, INT8)])
    found = info(bundle)
    assert found.precision == "fp32"
    assert found.why == "the first of 2 that opens; parity not measured yet"


def test_an_engine_whose_proof_failed_comes_last_and_says_so(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=1.0), replace(INT8, latency_ms=9.0, with_parity=False)])
    with edited_manifest(bundle) as data:
        data["engines"][0]["parity"]["passed"] = False
    assert info(bundle).precision == "int8"
    assert "PARITY FAILED" in info(bundle, precision="fp32").why


def test_fp32_is_what_others_are_measured_against(tmp_path: Path) -> None:
    engines = [replace(ORT, latency_ms=9.0, shares_enrolments=False), replace(INT8, shares_enrolments=False)]
    assert info(bundle_of(tmp_path, engines)).precision == "fp32"


def test_int8_whose_embeddings_are_not_exchangeable_is_not_taken_unasked(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=9.0), replace(INT8, shares_enrolments=False)])
    assert info(bundle).precision == "fp32"
    assert info(bundle, backend="onnxruntime").precision == "fp32"
    assert info(bundle, precision="int8").precision == "int8"


def test_int8_runs_unasked_where_there_is_nothing_else(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(INT8, shares_enrolments=False)])
    assert info(bundle).precision == "int8"


def test_int8_is_not_the_fallback_for_a_broken_fp32(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [ORT, replace(INT8, shares_enrolments=False)])
    break_engine(bundle, FP32_FILE)
    with logged_warnings(match="did not open"), pytest.raises(EngineError):
        Predictor(bundle)


def test_the_engine_that_is_asked_for_runs(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [ORT, INT8])
    found = info(bundle, precision="fp32")
    assert found.precision == "fp32"
    assert found.why == "the only engine that was asked for; parity held"
    assert info(bundle, backend="onnxruntime", device="cpu", precision="int8").precision == "int8"


def test_a_broken_engine_falls_back_with_a_warning(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0), INT8])
    break_engine(bundle, INT8_FILE)
    message = r"some\.edgevis: the engine onnxruntime-int8 did not open: cannot open embed\.onnx"
    with logged_warnings(match=message) as texts:
        predictor = Predictor(bundle, threads=1)
    assert len(texts) == 1
    with predictor:
        assert predictor.info.precision == "fp32"
        assert predictor.info.why == (
            "the fastest of 2 by the build's 2.00 ms per image; parity held; 1 better cannot be used here"
        )
        (skipped,) = predictor.info.skipped
        assert skipped.startswith("onnxruntime-int8: cannot open embed.onnx")
        rows = predictor.embed([picture(1), picture(2)])
    np.testing.assert_allclose(rows, expected_rows([picture(1), picture(2)], Tiny()), atol=1e-5)


def test_an_engine_with_other_names_falls_back_with_a_warning(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0), INT8])
    other = write_tiny_bundle(tmp_path / "other.edgevis", Tiny("classify"))
    model = (other / "engines/onnxruntime-fp32/encode.onnx").read_bytes().replace(b"embedding", b"embeddinG")
    replace_file(bundle, INT8_FILE, model)
    with logged_warnings(match=r"\['embeddinG'\]; the manifest says \['image'\] -> \['embedding'\]"):
        assert info(bundle).precision == "fp32"


def test_when_nothing_opens_every_reason_is_given(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [ORT, INT8])
    break_engine(bundle, FP32_FILE)
    break_engine(bundle, INT8_FILE)
    with (
        logged_warnings(match="did not open"),
        pytest.raises(EngineError, match=r"(?s)no engine can be opened here:.*-int8: .*-fp32: ") as caught,
    ):
        Predictor(bundle)
    assert isinstance(caught.value.__cause__, EngineError)


def test_when_the_only_engine_does_not_open_its_own_error_is_raised(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [ORT, INT8])
    break_engine(bundle, INT8_FILE)
    with (
        logged_warnings(match="did not open"),
        pytest.raises(EngineError, match=r"^cannot open embed\.onnx"),
    ):
        Predictor(bundle, precision="int8")


@pytest.mark.parametrize("name", [FP32_FILE, INT8_FILE])
def test_a_tampered_engine_is_refused_and_never_passed_over(tmp_path: Path, name: str) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0), INT8])
    data = bytearray((bundle / name).read_bytes())
    data[-1] ^= 1
    (bundle / name).write_bytes(bytes(data))
    precision = "fp32" if name == FP32_FILE else None
    with pytest.raises(IntegrityError, match="has been altered"):
        Predictor(bundle, precision=precision)


def test_an_engine_for_another_device_is_passed_over_in_silence(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0), replace(INT8, device="npu")])
    found = info(bundle)
    assert found.precision == "fp32"
    assert found.skipped == ("onnxruntime-int8: onnxruntime has no device 'npu' here; it has cpu",)
    with pytest.raises(UnavailableError, match="onnxruntime has no device 'npu' here; it has cpu"):
        Predictor(bundle, device="npu")


def test_an_engine_of_a_backend_of_the_future_is_passed_over_in_silence(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0)])
    add_engine(bundle, backend="abacus", latency_ms=0.1)
    found = info(bundle)
    assert found.backend == "onnxruntime"
    (skipped,) = found.skipped
    assert skipped.startswith("abacus-fp32: there is no backend 'abacus'; known: onnxruntime, openvino")


def test_an_engine_of_a_precision_that_the_backend_lacks_is_passed_over(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0)])
    add_engine(bundle, precision="fp16", latency_ms=0.1)
    found = info(bundle)
    assert found.precision == "fp32"
    assert found.skipped == ("onnxruntime-fp16: onnxruntime runs fp32, int8 on the CPU, not fp16",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tflite"}, "there is no backend 'tflite'; known: onnxruntime, openvino"),
        ({"backend": "OpenVINO"}, "there is no backend 'OpenVINO'; known: "),
        ({"backend": None}, "there is no backend None; known: "),
        ({"precision": "fp8"}, "there is no precision 'fp8'; known: fp32, fp16, bf16, int8"),
        ({"precision": "FP32"}, "there is no precision 'FP32'; known: "),
        ({"device": "gpu"}, r"has no engine for .*device='gpu'.* it has onnxruntime-fp32 on cpu, onnxruntime-int8 on"),
        ({"precision": "bf16"}, "has no engine for .*precision='bf16'; it has onnxruntime-fp32 on cpu"),
        ({"backend": "openvino"}, "has no engine for backend='openvino'"),
    ],
)
def test_unknown_names_list_the_known_ones(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    bundle = bundle_of(tmp_path, [ORT, INT8])
    with pytest.raises(UnknownBackendError, match=message) as caught:
        Predictor(bundle, **arguments)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BackendError)


def test_a_bundle_without_engines(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [ORT])
    with edited_manifest(bundle) as data:
        data["engines"] = []
    with pytest.raises(UnknownBackendError, match="has no engine"):
        Predictor(bundle)


def test_choosing_does_not_depend_on_the_order_in_the_manifest(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [replace(ORT, latency_ms=2.0), INT8])
    with edited_manifest(bundle) as data:
        data["engines"].reverse()
    assert info(bundle).precision == "int8"


def test_a_sound_bundle_opens_without_a_warning_wherever_it_lies(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [ORT, INT8])
    moved = tmp_path / "another folder ü"
    moved.mkdir()
    shutil.move(bundle, moved / "renamed")  # a bundle that is read may have any name
    assert info(moved / "renamed").bundle == str(moved / "renamed")
    assert WATCH.messages == []
