"""The Triton model repository: its configurations by Triton's own schema, and a real server that answers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from export.triton.repository import main, write_graphs, write_predictor, write_repository
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import ExportError
from runtime.predictor import Predictor

from bundles import Array, picture, write_tiny_bundle
from locations import ROOT
from python_processes import python_environment


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
    assert config.instance_group[0].count == 1
    assert config.parameters["bundle"].string_value == "../.."


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
    config = config_of(write_graphs(tmp_path, name="gpu", deployment=deployment, record=on_gpu, files=files)[0])
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["precision_mode"]) == ("tensorrt", "FP16")
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
        (["--engine", "onnxruntime-fp32", "--graphs", "--plans"], "--plans needs an engine of tensorrt"),
    ):
        assert main([str(tiny_bundle), "--output", repository, *arguments]) == 1
        assert message in capsys.readouterr().err


@dataclass(frozen=True)
class Server:
    url: str
    bundle: Path
    log: Path

    def infer(self, images: list[bytes], *outputs: str, model: str = "tiny") -> dict[str, Any]:
        """By the Open Inference Protocol, as the README shows it."""
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
    own = os.environ.get("EDGEVIS_TRITON_PYTHONPATH", "")
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
    belongs beside it. ``pip install --no-deps nvidia-pytriton`` does: the binary needs nothing of what it depends on.
    """
    found = shutil.which("tritonserver")
    if found and Path("/opt/tritonserver/backends/python").is_dir():
        return Path(found), Path("/opt/tritonserver/backends")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("no tritonserver is installed; `pip install --no-deps nvidia-pytriton` brings one")
    root = Path(spec.submodule_search_locations[0]) / "tritonserver"
    stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.is_dir():
        pytest.skip(f"nvidia-pytriton has no stub for Python {sys.version_info.major}.{sys.version_info.minor}")
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0" and "EDGEVIS_TRITON_PYTHONPATH" not in os.environ:
        pytest.skip(
            "the stub of nvidia-pytriton needs NumPy 1: `pip install --target DIR 'numpy<2'`, and then "
            "EDGEVIS_TRITON_PYTHONPATH=DIR"
        )
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
            return error.read().decode()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, sent))
    assert "image 0 is not an image that OpenCV can decode" in answers.pop(5)
    rows = np.array(answers, np.float32)
    np.testing.assert_allclose(rows, embeddings(server, [picture(seed) for seed in range(12) if seed != 5]), atol=1e-5)


def test_the_client_of_the_readme(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    readme = (ROOT / "README.md").read_text()
    example = re.search(r"^```python\n([^`]*?tritonclient.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert example is not None
    code = example[1].replace("localhost:8000", server.url.removeprefix("http://")).replace("osnet-x0-25", "tiny")
    (tmp_path / "person.jpg").write_bytes(png(picture(1)))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the README's code is what is tested
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
