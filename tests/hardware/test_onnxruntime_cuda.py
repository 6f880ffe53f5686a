"""ONNX Runtime's GPU providers: what they are told, and that nothing goes to the processor unnoticed.

Where there is a GPU, ``test_backends.py`` runs every test of a backend on it as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from runtime.backends import onnxruntime as backend
from runtime.bundle.engine_files import read_engine
from runtime.errors import UnavailableError, UnknownBackendError

from bundles import FP32_TOLERANCE, HEIGHT, WIDTH, Tiny, TinyEngine, expected_embeddings, float_onnx, write_engine
from logs import logged_warnings

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
NAMES_NODES = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")  # since 1.24
ON_PROCESSOR: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_engine(tmp_path, TinyEngine(), Tiny())


def test_tf32_is_off_and_every_provider_is_told_its_device() -> None:
    (cuda, options), (last, _) = backend.gpu_providers("CUDAExecutionProvider", "fp32")
    assert (cuda, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert (options["use_tf32"], options["device_id"]) == ("0", "0")


@pytest.mark.parametrize(("precision", "half", "int8"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "1", "1")])
def test_what_tensorrt_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, half: str, int8: str
) -> None:
    monkeypatch.setenv("EDGEVIS_CACHE", str(tmp_path))
    providers = backend.gpu_providers("TensorrtExecutionProvider", precision)  # type: ignore[arg-type]
    assert [name for name, _ in providers] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    options = providers[0][1]
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (half, int8)
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)


def test_nodes_on_the_processor_are_named(file: Path) -> None:
    """The engine for the GPU, told to run on the processor: it says so, and computes the same."""
    named = "5 nodes: 1 Conv, 1 Flatten, 1 Gemm" if NAMES_NODES else "some nodes, which onnxruntime .* does not name"
    with logged_warnings(match=rf"embed\.onnx: part of it runs on the processor, .*: {named}"):
        engine = backend._CudaEngine(onnxruntime, read_engine(file), None, ON_PROCESSOR)
    images = np.random.default_rng(0).standard_normal((3, 3, HEIGHT, WIDTH)).astype(np.float32)
    expected = expected_embeddings(images, Tiny().weights)
    for _ in range(2):
        found = engine.run({"image": images})["embedding"]
        assert np.abs(found - expected).max() < FP32_TOLERANCE * np.abs(expected).max()
        found[...] = 7  # the caller's
    engine.close()


@pytest.mark.skipif(not NAMES_NODES, reason="this onnxruntime does not say which node runs where")
def test_arithmetic_with_shapes_is_not_counted() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4])
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    graph = helper.make_graph([helper.make_node("Shape", ["image"], ["shape"])], "shapes", [image], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert not backend.processor_nodes(session)
    session = onnxruntime.InferenceSession(
        float_onnx(Tiny()).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert backend.processor_nodes(session)["Conv"] == 1


@pytest.mark.skipif(HAS_CUDA, reason="this is the onnxruntime that has CUDA")
def test_the_package_without_cuda_names_the_one_that_has_it(file: Path) -> None:
    for call in (
        lambda: backend.open_engine(read_engine(file), precision="fp32", device="cuda", threads=None),
        lambda: backend.fingerprint("cuda"),
    ):
        with pytest.raises(UnavailableError, match="pip install onnxruntime-gpu"):
            call()


@pytest.mark.skipif(not HAS_CUDA, reason="onnxruntime-gpu is not installed")
def test_without_a_gpu_nothing_falls_back_to_the_processor(file: Path) -> None:
    if "cuda" in backend.devices():
        pytest.skip("there is a GPU here")
    with pytest.raises(UnavailableError, match="cannot use its CUDAExecutionProvider here"):
        backend.open_engine(read_engine(file), precision="fp32", device="cuda", threads=None)


def test_what_is_not_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownBackendError, match="no device 'npu'; known: cpu, cuda"):
        backend.open_engine(read_engine(file), precision="fp32", device="npu", threads=None)
    with pytest.raises(UnknownBackendError, match="runs fp32, fp16, int8 on NVIDIA GPUs, not bf16"):
        backend.open_engine(read_engine(file), precision="bf16", device="cuda", threads=None)
    monkeypatch.setenv("EDGEVIS_ONNXRUNTIME", "rocm")
    with pytest.raises(UnknownBackendError, match="EDGEVIS_ONNXRUNTIME is 'rocm'; allowed: cuda, tensorrt"):
        backend.open_engine(read_engine(file), precision="fp32", device="cuda", threads=None)
