"""The Triton model repository: its configurations by Triton's own schema, and a real server that answers."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from export.triton.repository import main, write_graphs, write_predictor, write_repository
from runtime.backends._tensorrt.spec import BuildSpec, spec_path
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import ExportError
from runtime.predictor import Predictor

from bundles import Array, Tiny, picture, tiny_weights, write_tiny_bundle
from locations import ROOT
from python_processes import python_environment

PACKAGES = "EDGEVIS_TRITON_PYTHONPATH"
"""The environment variable that names the folder of nvidia-pytriton and NumPy 1."""


def config_of(model: Path) -> Any:
    """The configuration, parsed by the schema that Triton's client carries."""
    pytest.importorskip("tritonclient", reason="tritonclient, which carries Triton's schema, is not installed")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_the_model_of_images(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(tiny_bundle)
    place = write_predictor(tmp_path, name="tiny", bundle="../..", deployment=bundle.manifest.deployment)
    config = config_of(place)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 4)
    assert [(item.name, list(item.dims)) for item in config.output] == [("result", [1]), ("embedding", [8])]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert config.version_policy.latest.num_versions == 1
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (1, config.instance_group[0].KIND_CPU)
    assert config.parameters["bundle"].string_value == "../.."
    assert config.parameters["max_pixels"].string_value == "33177600"

    # What waits is bounded in number and in time.
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (64, 2_000_000)
    assert policy.timeout_action == policy.REJECT


def test_a_bundle_for_gpus_has_an_instance_on_each(tiny_bundle: Path, tmp_path: Path) -> None:
    deployment = Bundle(tiny_bundle).manifest.deployment
    config = config_of(write_predictor(tmp_path, name="tiny", bundle="../..", deployment=deployment, device="cuda"))
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert not config.instance_group[0].gpus  # all of the server's
    assert config.parameters["device"].string_value == "cuda"


@pytest.mark.parametrize(
    ("kind", "visible", "expected"),
    [
        ("GPU", None, "1"),
        ("GPU", "5,7", "7"),
        ("GPU", "GPU-aa,GPU-bb", "GPU-bb"),
        ("CPU", "5,7", "5,7"),
        ("CPU", None, None),
    ],
)
def test_an_instance_sees_its_gpu(
    kind: str, visible: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    functions = runpy.run_path(str(ROOT / "export/triton/model.py"))
    functions["_use_gpu_of_instance"]({"model_instance_kind": kind, "model_instance_device_id": "1"})
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


def test_graphs_of_an_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(tiny_bundle)
    deployment, (record,) = bundle.manifest.deployment, bundle.manifest.engines
    files = {"embed": bundle.engine_file(record.files["embed"])}
    (place,) = write_graphs(tmp_path, name="tiny", deployment=deployment, record=record, files=files)
    config = config_of(place)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny-embed", "onnxruntime", 4)
    assert list(config.input[0].dims) == [3, 32, 16]
    assert config.model_warmup[0].inputs["image"].random_data
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert (place / "1" / "model.onnx").read_bytes() == files["embed"].read_bytes()

    on_gpu = replace(record, backend="tensorrt", device="cuda", precision="fp16")
    shapes = {"image": ((1, 3, 32, 16), (2, 3, 32, 16), (3, 3, 32, 16))}
    graph = tmp_path / "tensorrt-fp16" / "embed.onnx"
    graph.parent.mkdir()
    shutil.copy(files["embed"], graph)
    spec_path(graph).write_text(BuildSpec(shapes, workspace_bytes=1 << 30).dumps())
    files = {"embed": graph}
    (place,) = write_graphs(
        tmp_path, name="gpu", deployment=deployment, record=on_gpu, files=files, engine_cache="/cache"
    )
    config = config_of(place)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": str(1 << 30),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
        "trt_profile_min_shapes": "image:1x3x32x16",
        "trt_profile_opt_shapes": "image:2x3x32x16",
        "trt_profile_max_shapes": "image:3x3x32x16",
    }
    # No batch comes that the engine is not built for, and those that do were run before the first client's.
    assert config.max_batch_size == 3
    assert [warm.batch_size for warm in config.model_warmup] == [1, 3]
    with pytest.raises(ExportError, match="choose an fp16 engine, or --plans"):
        write_graphs(
            tmp_path,
            name="int8",
            deployment=deployment,
            record=replace(on_gpu, precision="int8"),
            files=files,
        )
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU

    (place,) = write_graphs(
        tmp_path, name="plan", deployment=deployment, record=on_gpu, files=files, plans={"embed": b"a plan"}
    )
    config = config_of(place)
    assert (config.backend, len(config.optimization.execution_accelerators.gpu_execution_accelerator)) == (
        "tensorrt",
        0,
    )
    assert (place / "1" / "model.plan").read_bytes() == b"a plan"


def test_a_graph_with_resident_inputs_is_not_batched_by_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(tiny_bundle)
    (record,) = bundle.manifest.engines
    support = TensorSpec("support", "float32", ("K", 16, 9, 9))
    image = TensorSpec("image", "float32", ("N", 3, 32, 16))
    graph = Graph("query", (image, support), (TensorSpec("logits", "float32", ("N", "K", 2, 32, 16)),))
    deployment = replace(bundle.manifest.deployment, graphs=(graph,))
    files = {"query": bundle.engine_file(record.files["embed"])}
    config = config_of(write_graphs(tmp_path, name="tiny", deployment=deployment, record=record, files=files)[0])
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(item.dims) for item in config.input] == [[-1, 3, 32, 16], [-1, 16, 9, 9]]
    assert list(config.model_warmup[0].inputs["support"].dims) == [1, 16, 9, 9]


def test_what_triton_has_no_backend_for(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle(tiny_bundle)
    deployment, (record,) = bundle.manifest.deployment, bundle.manifest.engines
    for other, name in ((replace(record, backend="openvino"), "embed.xml"), (record, "embed.plan")):
        with pytest.raises(ExportError, match="Triton serves no"):
            write_graphs(tmp_path, name="tiny", deployment=deployment, record=other, files={"embed": tmp_path / name})
    for name in ("", "a/b", "..", 'quoted"'):
        with pytest.raises(ExportError, match="not allowed in a repository"):
            write_predictor(tmp_path, name=name, bundle="../..", deployment=deployment)


def test_the_command(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = str(tmp_path / "models")
    assert main([str(tiny_bundle), "--output", repository, "--engine", "onnxruntime-fp32", "--graphs"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: tritonserver --model-repository={repository}"
    assert sorted(path.name for path in Path(repository).iterdir()) == ["reid", "reid-embed"]
    for arguments, message in (
        (["--graphs"], "--graphs needs --engine"),
        (["--engine", "x"], "has no engine 'x'; it has onnxruntime-fp32"),
        (["--instances", "0"], "--instances is 0"),
        (["--max-pixels", "0"], "--max-pixels is 0"),
        (["--enrolment", "nowhere.enrolment"], "nowhere.enrolment"),
        (["--engine", "onnxruntime-fp32", "--graphs", "--plans"], "--plans needs an engine of tensorrt"),
    ):
        assert main([str(tiny_bundle), "--output", repository, *arguments]) == 1
        assert message in capsys.readouterr().err


def test_an_enrolment_of_another_encoder_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_bundle(tmp_path / "other.edgevis", Tiny(weights=tiny_weights(7)))
    file = tmp_path / "door.enrolment"
    with Predictor(other) as predictor:
        predictor.enroll("alice", [picture(1)])
        predictor.save(file)
    repository = tmp_path / "models"
    assert main([str(tiny_bundle), "--output", str(repository), "--enrolment", str(file)]) == 1
    assert "was made by another encoder" in capsys.readouterr().err
    assert not repository.exists()
    assert main([str(other), "--output", str(repository), "--enrolment", str(file)]) == 0


@dataclass(frozen=True)
class Server:
    url: str
    bundle: Path
    log: Path

    def infer(self, images: list[bytes], *outputs: str, model: str = "tiny") -> dict[str, Any]:
        """By the Open Inference Protocol."""
        request = {
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [len(images), 1], "parameters": {"binary_data_size": 0}}
            ],
            "outputs": [{"name": name} for name in outputs],
        }
        body = b"".join(len(data).to_bytes(4, "little") + data for data in images)
        request["inputs"][0]["parameters"]["binary_data_size"] = len(body)
        header = json.dumps(request).encode()
        call = urllib.request.Request(  # noqa: S310
            f"{self.url}/v2/models/{model}/infer",
            header + body,
            {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
        )
        with urllib.request.urlopen(call, timeout=30) as answer:  # noqa: S310
            return {item["name"]: item for item in json.loads(answer.read())["outputs"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tritonserver on a repository with the tiny Re-ID model, alice and bob enrolled, and one without anybody."""
    executable, backends = tritonserver(tmp_path_factory.mktemp("backends"))
    folder = tmp_path_factory.mktemp("served")
    bundle = write_tiny_bundle(folder / "tiny.edgevis")
    with Predictor(bundle) as predictor:
        predictor.enroll("alice", [picture(1)])
        predictor.enroll("bob", [picture(2)])
        predictor.save(folder / "door.enrolment")
    repository = folder / "models"
    assert main([str(bundle), "--output", str(repository), "--enrolment", str(folder / "door.enrolment")]) == 0
    opened = Bundle(bundle)
    inside = write_predictor(
        repository, name="nobody", bundle="../../tiny.edgevis", deployment=opened.manifest.deployment, instances=2
    )
    assert inside.is_dir()
    port = free_port()
    log = folder / "log"
    # The stub loads libpython, and what the wheel brings beside its packages.
    libraries = [sysconfig.get_config_var("LIBDIR") or "", str(executable.parents[3] / "nvidia_pytriton.libs")]
    environment = {**python_environment(), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    own = os.environ.get(PACKAGES, "")
    path = [own, environment["PYTHONPATH"], sysconfig.get_paths()["purelib"]]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(executable),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                f"--http-port={port}",
                "--http-address=127.0.0.1",
                "--allow-grpc=false",
                "--allow-metrics=false",
                "--disable-auto-complete-config",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield Server(f"http://127.0.0.1:{port}", bundle, log)
    finally:
        process.terminate()
        process.wait(timeout=60)


def tritonserver(folder: Path) -> tuple[Path, Path]:
    """The server and a folder of its backends; skips where it is not installed.

    The wheel ``nvidia-pytriton`` has the server with the Python backend, and a stub for each version of Python that
    belongs beside it. The Makefile puts it, without what it depends on, into a folder of its own, and NumPy 1 with it,
    which the stub was built for.
    """
    found = shutil.which("tritonserver")
    if found and Path("/opt/tritonserver/backends/python").is_dir():
        return Path(found), Path("/opt/tritonserver/backends")
    own = os.environ.get(PACKAGES)
    if not own:
        pytest.skip("no tritonserver is installed; on x86-64 with glibc 2.35 `make test` brings one")
    root = Path(own) / "pytriton" / "tritonserver"
    assert root.is_dir(), f"{PACKAGES}={own}, which holds no nvidia-pytriton"
    stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.is_dir():
        pytest.skip(f"nvidia-pytriton has no stub for Python {sys.version_info.major}.{sys.version_info.minor}")
    shutil.copytree(root / "backends", folder, dirs_exist_ok=True)
    shutil.copy(stub / "triton_python_backend_stub", folder / "python")
    for file in (root / "bin" / "tritonserver", folder / "python" / "triton_python_backend_stub"):
        file.chmod(0o755)
    return root / "bin" / "tritonserver", folder


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 45
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"tritonserver did not start:\n{log.read_text(errors='replace')[-4000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def png(image: Array) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def embeddings(server: Server, images: list[Array]) -> Array:
    with Predictor(server.bundle) as predictor:
        return predictor.embed(images)


def test_the_server_answers_as_the_predictor_does(server: Server) -> None:
    images = [picture(seed, 40, 30) for seed in (1, 2, 3)]
    outputs = server.infer([png(image) for image in images], "embedding", "result")
    found = np.array(outputs["embedding"]["data"], np.float32).reshape(outputs["embedding"]["shape"])
    np.testing.assert_allclose(found, embeddings(server, images), atol=1e-5)
    with Predictor(server.bundle) as predictor:
        predictor.load(server.bundle.parent / "door.enrolment")
        wanted = [predictor.predict(image) for image in images]
    results = [json.loads(text) for text in outputs["result"]["data"]]
    assert [result["label"] for result in results] == [result.label for result in wanted]
    assert [result["score"] for result in results] == pytest.approx([result.score for result in wanted], abs=1e-5)


def test_a_model_without_an_enrolment_gives_embeddings_and_null(server: Server) -> None:
    outputs = server.infer([png(picture(1))], "embedding", "result", model="nobody")
    assert outputs["result"]["data"] == ["null"]
    assert outputs["embedding"]["shape"] == [1, 8]


def test_clients_get_only_what_they_ask_for(server: Server) -> None:
    assert set(server.infer([png(picture(1))], "embedding")) == {"embedding"}


def test_a_picture_that_cannot_be_decoded_fails_its_own_request_only(server: Server) -> None:
    """Requests at once, which the server may batch: the bad one is refused, the others are answered."""
    from concurrent.futures import ThreadPoolExecutor

    sent = [png(picture(seed)) for seed in range(12)]
    sent[5] = b"no picture"

    def ask(data: bytes) -> Any:
        try:
            return server.infer([data], "embedding")["embedding"]["data"]
        except urllib.error.HTTPError as error:
            return f"{error.code}: {error.read().decode()}"

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, sent))
    refused = answers.pop(5)
    assert refused.startswith("400: ")  # the client's fault, not the server's
    assert "image 0 is not an image that OpenCV can decode" in refused
    rows = np.array(answers, np.float32)
    np.testing.assert_allclose(rows, embeddings(server, [picture(seed) for seed in range(12) if seed != 5]), atol=1e-5)


def test_a_picture_of_too_many_pixels_is_refused(server: Server) -> None:
    bomb = png(np.zeros((6000, 6000, 3), np.uint8))
    with pytest.raises(urllib.error.HTTPError) as raised:
        server.infer([bomb], "embedding")
    assert raised.value.code == 400
    assert "6000 x 6000 pixels; at most 33177600 are read" in raised.value.read().decode()


def test_a_changed_enrolment_is_noticed(server: Server) -> None:
    """A new person appears without a restart; a damaged file is logged, and the earlier enrolment stays."""
    file = server.bundle.parent / "door.enrolment"
    before = file.read_bytes()

    def label() -> str | None:
        result: str | None = json.loads(server.infer([png(picture(9))], "result")["result"]["data"][0])["label"]
        return result

    def wait_for(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.2)

    try:
        assert label() != "carol"
        with Predictor(server.bundle) as predictor:
            predictor.load(file)
            predictor.enroll("carol", [picture(9)])
            predictor.save(file)
        wait_for(lambda: label() == "carol")
        file.write_bytes(b"damaged")

        def logged() -> bool:
            assert label() == "carol"
            return "the enrolment stays as it was" in server.log.read_text(errors="replace")

        wait_for(logged)
    finally:
        file.write_bytes(before)
        time.sleep(1.1)


def test_the_client_of_the_documentation(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    page = (ROOT / "docs/targets.md").read_text()
    example = re.search(r"^```python\n([^`]*?tritonclient.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert example is not None
    code = example[1].replace("localhost:8000", server.url.removeprefix("http://")).replace("osnet-x0-25", "tiny")
    (tmp_path / "person.jpg").write_bytes(png(picture(1)))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "targets.md", "exec"), {})  # noqa: S102 - the page's code is what is tested
    printed = capsys.readouterr().out
    assert json.loads(printed.partition("} (")[0] + "}")["label"] == "alice"
    assert printed.endswith("(1, 8)\n")


def test_readiness_and_metadata_by_the_protocol(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/v2/models/tiny", timeout=10) as answer:  # noqa: S310
        data = json.loads(answer.read())
    assert (data["name"], data["versions"], data["platform"]) == ("tiny", ["1"], "python")
    assert data["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]


def test_both_kinds_of_model_for_the_pipeline(tiny_bundle: Path) -> None:
    bundle = Bundle(tiny_bundle)
    deployment, (record,) = bundle.manifest.deployment, bundle.manifest.engines
    made = write_repository(
        tiny_bundle / "triton",
        name="tiny",
        deployment=deployment,
        record=record,
        files={"embed": tiny_bundle / record.files["embed"]},
        bundle="../..",
    )
    assert [path.name for path in made] == ["tiny", "tiny-embed"]
