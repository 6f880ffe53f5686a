"""The Triton model repository, by Triton's own schema of a configuration."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from export.triton.repository import main, write_graphs, write_predictor, write_repository
from runtime.backends._tensorrt.spec import BuildSpec, spec_path
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Deployment, Graph, TensorSpec
from runtime.errors import ExportError, InputError
from runtime.predictor import Predictor

from bundles import Tiny, picture, tiny_weights, write_tiny_bundle
from detection_bundles import board, detector, write_detector
from instance_bundles import outliner, write_outliner
from locations import ROOT
from segmentation_bundles import FEW_SHOT, FIXED


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


@pytest.mark.parametrize(
    ("deployment", "outputs"),
    [(detector(), ["result"]), (outliner(), ["result"]), (FIXED, ["result", "mask"]), (FEW_SHOT, ["result", "mask"])],
)
def test_only_models_that_label_pixels_have_masks(deployment: Deployment, outputs: list[str], tmp_path: Path) -> None:
    config = config_of(write_predictor(tmp_path, name="model", bundle="../..", deployment=deployment))
    assert [item.name for item in config.output] == outputs


@pytest.mark.parametrize("write_model", [write_detector, write_outliner])
def test_an_image_without_objects_has_an_empty_result(
    write_model: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = runpy.run_path(str(ROOT / "export/triton/model.py"))["TritonPythonModel"]()
    with Predictor(write_model(tmp_path / "cells.edgevis")) as predictor:
        model._predictor, model._enrolled = predictor, True
        answers = model._outputs([board(), board((1, 2, (0, 0, 255)))], {"result"})["result"][:, 0]
    assert [len(json.loads(answer)["detections"]) for answer in answers] == [0, 1]


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
    (place,) = write_graphs(tmp_path, name="any", deployment=deployment, record=on_gpu, files={"embed": graph})
    config = config_of(place)  # of a graph whose shapes are not known
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 4)
    # Nor is anything read from a folder that the user did not name.
    assert dict(accelerator.parameters) == {"precision_mode": "FP16"}
    spec_path(graph).write_text(BuildSpec(shapes, workspace_bytes=1 << 30).dumps())
    files = {"embed": graph}
    (place,) = write_graphs(
        tmp_path, name="gpu", deployment=deployment, record=on_gpu, files=files, engine_cache="/cache"
    )
    with pytest.raises(InputError, match="--engine-cache is 'cache'; allowed: an absolute path"):
        write_graphs(tmp_path, name="gpu", deployment=deployment, record=on_gpu, files=files, engine_cache="cache")
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
        (["--engine-cache", "cache"], "--engine-cache is 'cache'; allowed: an absolute path"),
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
