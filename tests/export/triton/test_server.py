"""A real Triton server on a repository of ours."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import triton
from benchmarks.triton_server import TritonServer
from export.triton.repository import main, write_predictor
from runtime.bundle.bundle import Bundle
from runtime.errors import UnavailableError
from runtime.predictor import Predictor

from bundles import Array, picture, write_tiny_bundle
from locations import ROOT


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
    try:
        running = TritonServer(repository, folder / "log")
    except UnavailableError as error:
        if "did not start" in str(error):
            raise
        pytest.skip(str(error))
    with running:
        yield Server(running.url, bundle, running.log)


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


def test_the_benchmark_asks_as_clients_do(server: Server) -> None:
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    connect = triton.connection(server.url.removeprefix("http://"), "tiny", "embedding", png(picture(1)))
    answers, _, _, errors = triton.measured(3, connect, 0.5)
    assert (int(answers) > 0, errors) == (True, "0")


def test_readiness_and_metadata_by_the_protocol(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/v2/models/tiny", timeout=10) as answer:  # noqa: S310
        data = json.loads(answer.read())
    assert (data["name"], data["versions"], data["platform"]) == ("tiny", ["1"], "python")
    assert data["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
