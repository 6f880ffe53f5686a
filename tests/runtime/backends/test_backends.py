"""Every backend, real: the same results, each thread its own, every vendor's exception mapped to ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from runtime import backends
from runtime.backends import Engine
from runtime.backends._tensorrt.engine import PlanEngine
from runtime.bundle.engine_files import read_engine
from runtime.bundle.spec import Precision
from runtime.common.extras import install_command
from runtime.errors import EngineError, MissingDependencyError, UnavailableError, UnknownBackendError

from bundles import (
    FP32_TOLERANCE,
    HEIGHT,
    MATCH,
    WIDTH,
    Array,
    Tiny,
    TinyEngine,
    expected_embeddings,
    float_onnx,
    match_onnx,
    needs_openvino,
    write_engine,
    write_model,
    write_tiny_bundle,
)
from python_processes import run_python, succeeded

TINY = Tiny()


def places() -> list[Any]:
    """Every backend on every device that it has here: a new file in runtime/backends/ is tested unasked."""
    found = []
    for name in backends.names():
        try:
            found += [pytest.param((name, device), id=f"{name}-{device}") for device in backends.load(name).devices()]
        except (MissingDependencyError, UnavailableError) as error:
            found.append(pytest.param((name, ""), id=name, marks=pytest.mark.skip(reason=str(error))))
    return found


@pytest.fixture(scope="module", params=places())
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and one of its devices."""
    name, device = request.param
    return name, device


@pytest.fixture(scope="module")
def backend(place: tuple[str, str]) -> str:
    return place[0]


@pytest.fixture(scope="module")
def device(place: tuple[str, str]) -> str:
    return place[1]


@pytest.fixture(scope="module")
def file(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp(backend), TinyEngine(backend), TINY)


def opened(
    backend: str, file: Path, *, device: str = "cpu", precision: Precision = "fp32", threads: int | None = 1
) -> Engine:
    return backends.load(backend).open_engine(read_engine(file), precision=precision, device=device, threads=threads)


@pytest.fixture
def engine(backend: str, device: str, file: Path) -> Iterator[Engine]:
    engine = opened(backend, file, device=device)
    yield engine
    engine.close()


def images(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, 3, HEIGHT, WIDTH)).astype(np.float32)


def relative_error(found: Array, batch: Array) -> float:
    expected = expected_embeddings(batch, TINY.weights)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_file_name_is_the_backend() -> None:
    files = {path.stem for path in Path(backends.__path__[0]).glob("[!_]*.py")}
    assert set(backends.names()) == files
    assert {"onnxruntime", "openvino"} <= files


@pytest.mark.parametrize("name", ["tflite", "", "__init__", "../openvino", "OpenVINO", None, 3, []])
def test_an_unknown_backend_lists_the_known_ones(name: Any) -> None:
    with pytest.raises(UnknownBackendError, match=r"there is no backend .*; known: onnxruntime, openvino"):
        backends.load(name)


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_what_is_installed_runs_on_the_cpu(name: str) -> None:
    assert backends.load(name).devices()[-1] == "cpu"


def test_names_of_inputs_and_outputs(engine: Engine) -> None:
    assert engine.inputs == ("image",)
    assert engine.outputs == ("embedding",)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_every_backend_computes_the_model(engine: Engine, rows: int) -> None:
    outputs = engine.run({"image": images(rows)})
    assert set(outputs) == {"embedding"}
    assert outputs["embedding"].dtype == np.float32
    assert relative_error(outputs["embedding"], images(rows)) < FP32_TOLERANCE


@pytest.mark.parametrize("threads", [1, 2, None])
def test_the_number_of_threads_changes_nothing(backend: str, device: str, file: Path, threads: int | None) -> None:
    engine = opened(backend, file, device=device, threads=threads)
    assert relative_error(engine.run({"image": images(2)})["embedding"], images(2)) < FP32_TOLERANCE
    engine.close()


_COUNT_THREADS = """
import os, sys
from pathlib import Path
from runtime.backends import load
from runtime.bundle.engine_files import read_engine

backend = load("onnxruntime")
backend.devices()
opened = []
for threads in (1, 3, 2):
    before = len(os.listdir("/proc/self/task"))
    opened.append(backend.open_engine(read_engine(Path(sys.argv[1])), precision="fp32", device="cpu", threads=threads))
    print(len(os.listdir("/proc/self/task")) - before + 1)  # the caller's is one of them
"""


def test_onnxruntime_takes_the_threads_that_it_is_given(tmp_path: Path) -> None:
    file = write_engine(tmp_path, TinyEngine(), TINY)
    assert succeeded(run_python(_COUNT_THREADS, file)).split() == ["1", "3", "2"]


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_takes_the_threads_that_it_is_given(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    from runtime.backends.openvino import open_engine

    compiled: list[openvino.CompiledModel] = []
    compile_model = openvino.Core.compile_model

    def recorded(*arguments: object) -> openvino.CompiledModel:
        compiled.append(compile_model(*arguments))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", recorded)

    engine = open_engine(
        read_engine(write_engine(tmp_path, TinyEngine("openvino"), TINY)),
        precision="fp32",
        device="cpu",
        threads=threads,
    )
    for rows in (1, 2):
        engine.run({"image": images(rows)})
    engine.close()
    assert [model.get_property("INFERENCE_NUM_THREADS") for model in compiled] == [threads, threads]


def test_int8_is_near_and_is_not_float(backend: str, device: str, tmp_path: Path) -> None:
    file = write_engine(tmp_path, TinyEngine(backend, "int8"), TINY)
    engine = opened(backend, file, device=device, precision="int8")
    error = relative_error(engine.run({"image": images(5)})["embedding"], images(5))
    engine.close()
    assert 1e-4 < error < 0.05  # 8 bits: half a step of 1/127 at each product, averaged over a picture


@needs_openvino
def test_openvino_runs_the_precision_that_is_said(tmp_path: Path) -> None:
    # Its CPU plugin's own default is BF16 wherever the processor has it: FP32 must be said to be FP32.
    file = write_engine(tmp_path, TinyEngine("openvino"), TINY)
    single = opened("openvino", file)
    assert relative_error(single.run({"image": images(5)})["embedding"], images(5)) < FP32_TOLERANCE
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UnavailableError, match=r"no BF16 arithmetic; use the fp32 or the int8 engine"):
            opened("openvino", file, precision="bf16")
        return
    half = opened("openvino", file, precision="bf16")
    # 8 bits of mantissa: 2**-9 relative for each rounding.
    assert 1e-4 < relative_error(half.run({"image": images(5)})["embedding"], images(5)) < 0.05


def test_a_precision_that_the_backend_does_not_have(backend: str, device: str, file: Path) -> None:
    if backend.startswith("tensorrt"):
        pytest.skip("a plan's arithmetic is in its graph: any precision is one that it may have")
    refused = []
    for precision in get_args(Precision):
        try:
            opened(backend, file, device=device, precision=precision).close()
        except UnknownBackendError as error:
            refused.append(precision)
            message = str(error)
        except UnavailableError:
            continue  # a processor without BF16
    assert ("fp16" in refused) == (device == "cpu")
    assert f"{backend} runs fp32" in message
    assert refused[-1] in message


def test_each_thread_gets_its_own_results_and_keeps_its_inputs(backend: str, device: str, file: Path) -> None:
    """With other batch sizes in between, and the first calls at once, when a backend may still have to compile."""
    engine = opened(backend, file, device=device, threads=2)
    count, runs = 8, 25
    wrong: list[str] = []
    start = threading.Barrier(count)

    def work(index: int) -> None:
        batches = [images(1 + (index + turn) % 3, seed=100 * index + turn) for turn in range(3)]
        kept = [batch.copy() for batch in batches]
        expected = [expected_embeddings(batch, TINY.weights) for batch in batches]
        scale = max(float(np.abs(rows).max()) for rows in expected)
        found: list[tuple[int, Array]] = []
        start.wait()
        for run in range(runs):
            found.append((run % 3, engine.run({"image": batches[run % 3]})["embedding"]))
        for turn, rows in found:  # after all runs: a result must outlive them
            if np.abs(rows - expected[turn]).max() > FP32_TOLERANCE * scale:
                wrong.append(f"thread {index} got another result")
        wrong.extend(
            f"an input of thread {index} was written to"
            for batch, copy in zip(batches, kept, strict=True)
            if not np.array_equal(batch, copy)
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert wrong == []


def test_results_can_be_written_to(engine: Engine) -> None:
    first = engine.run({"image": images(2)})["embedding"]
    first[...] = 7
    second = engine.run({"image": images(2)})["embedding"]
    assert relative_error(second, images(2)) < FP32_TOLERANCE
    assert (first == 7).all()


def test_an_engine_of_several_inputs(backend: str, device: str, tmp_path: Path) -> None:
    engine = opened(backend, write_model(tmp_path / "match.onnx", match_onnx(), backend), device=device)
    assert set(engine.inputs) == {tensor.name for tensor in MATCH.inputs}
    assert set(engine.outputs) == {tensor.name for tensor in MATCH.outputs}
    for rows, support in [(1, 1), (1, 3), (3, 1), (2, 2)]:
        feeds = {
            "query": np.full((rows, 4), 2, np.float32),
            "weight": np.arange(1, rows + 1, dtype=np.float32),
            "support": np.arange(support * 4, dtype=np.float32).reshape(support, 4),
        }
        outputs = engine.run(feeds)
        np.testing.assert_allclose(outputs["scores"], np.outer(feeds["weight"], 2 * feeds["support"].sum(axis=1)))
        np.testing.assert_allclose(outputs["total"], feeds["support"].sum(axis=0))
    engine.close()


def test_a_closed_engine(backend: str, device: str, file: Path) -> None:
    engine = opened(backend, file, device=device)
    engine.run({"image": images(1)})
    engine.close()
    with pytest.raises(EngineError, match="this engine has been closed"):
        engine.run({"image": images(1)})
    engine.close()


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"garbage", lambda data: data[: len(data) // 2], lambda data: data[100:]]
)
def test_a_damaged_engine_file(backend: str, device: str, tmp_path: Path, damage: Any) -> None:
    file = write_engine(tmp_path, TinyEngine(backend), TINY)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(EngineError, match=f"cannot open {file.name}") as caught:
        opened(backend, file, device=device)
    assert caught.value.__cause__ is not None


def test_a_missing_engine_file(backend: str, device: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot open nothing\.onnx") as caught:
        opened(backend, tmp_path / "nothing.onnx", device=device)
    assert caught.value.__cause__ is not None


@needs_openvino
@pytest.mark.parametrize("size", [0, 10, None])
def test_an_ir_whose_weights_are_damaged(tmp_path: Path, size: int | None) -> None:
    file = write_engine(tmp_path, TinyEngine("openvino"), TINY)
    weights = file.with_suffix(".bin")
    if size is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(EngineError, match=r"cannot open embed\.xml") as caught:
        opened("openvino", file)
    assert caught.value.__cause__ is not None


@needs_openvino
def test_an_ir_whose_input_has_no_axis(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13

    image = opset13.parameter([], np.float32)
    model = openvino.Model([opset13.result(opset13.relu(image))], [image])
    openvino.save_model(model, tmp_path / "scalar.xml")
    with pytest.raises(EngineError, match=r"cannot open scalar\.xml") as caught:
        opened("openvino", tmp_path / "scalar.xml")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("shape", [(1, 3, 8, 16), (1, 3, 64, 16), (1, 4, 32, 16)])
def test_what_the_vendor_refuses_is_an_engine_error(engine: Engine, shape: tuple[int, ...]) -> None:
    """As where the manifest says another size than the engine was compiled for."""
    with pytest.raises(EngineError) as caught:
        engine.run({"image": np.zeros(shape, np.float32)})
    # TensorRT returns false where others raise: there is nothing to chain.
    assert caught.value.__cause__ is not None or isinstance(engine, PlanEngine)
    assert relative_error(engine.run({"image": images(2)})["embedding"], images(2)) < FP32_TOLERANCE


def test_an_engine_of_fixed_batch_refuses_another(backend: str, device: str, tmp_path: Path) -> None:
    model = float_onnx(TINY)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    engine = opened(backend, write_model(tmp_path / "one.onnx", model, backend), device=device)
    assert relative_error(engine.run({"image": images(1)})["embedding"], images(1)) < FP32_TOLERANCE
    with pytest.raises(EngineError) as caught:
        engine.run({"image": images(2)})
    assert caught.value.__cause__ is not None or isinstance(engine, PlanEngine)
    engine.close()


_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from runtime import backends
from runtime.common.extras import install_command
from runtime.bundle.engine_files import EngineFiles
from runtime.errors import MissingDependencyError
backend = backends.load(sys.argv[1])
for call in (
    backend.devices,
    lambda: backend.open_engine(EngineFiles("any", b""), precision="fp32", device=sys.argv[2], threads=None),
):
    try:
        call()
    except MissingDependencyError as error:
        assert isinstance(error, ImportError)
        assert isinstance(error.__cause__, ModuleNotFoundError)
        print(error)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorrt", "TensorRT is not installed: {command}; on a Jetson it comes with JetPack"),
        ("onnxruntime", "onnxruntime is not installed: pip install onnxruntime"),
        ("openvino", "openvino is not installed: {command}"),
    ],
)
def test_a_missing_package_names_the_command_that_installs_it(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the command names a checkout from the working folder
    device = "cuda" if name == "tensorrt" else "cpu"
    text = message.format(command=install_command(name))
    assert succeeded(run_python(_WITHOUT, name, device, cwd=tmp_path)).splitlines() == [text] * 2


_PREDICT_WITHOUT = (
    _WITHOUT.partition("from runtime import backends")[0]
    + """
from runtime.predictor import Predictor
from runtime.errors import MissingDependencyError

with Predictor(sys.argv[2]) as predictor:
    info = predictor.info
    print(info.backend, "|", info.why, "|", *info.skipped)
try:
    Predictor(sys.argv[2], backend=sys.argv[1])
except MissingDependencyError as error:
    print(error)
"""
)


@needs_openvino
def test_an_engine_whose_package_is_missing_is_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engines = [TinyEngine(latency_ms=2.0), TinyEngine("openvino", latency_ms=1.0)]
    bundle = write_tiny_bundle(tmp_path / "two.edgevis", Tiny(engines=engines))
    done = run_python(_PREDICT_WITHOUT, "openvino", bundle, cwd=tmp_path)  # -W error: a warning would fail here
    assert done.stderr == "", "nor is one logged"
    chosen, asked = succeeded(done).splitlines()
    assert chosen.startswith(
        "onnxruntime | the fastest of 2 by the build's 2.00 ms per image; parity held; 1 better cannot"
    )
    assert chosen.endswith(f"| openvino-fp32: openvino is not installed: {install_command('openvino')}")
    assert asked == f"openvino is not installed: {install_command('openvino')}"
