"""The contract of every model that is found: what its file declares, it keeps, from PyTorch to a Predictor.

A new file in edgevis/models is tested here unasked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from calibration.data.samples import SampleSet, samples_from_photographs
from edgevis import Detections, EnrolmentError, InputError, Predictor, Segmentation, models
from export import compilers
from export.compilers import graph_path
from export.onnx import onnx_from_module
from runtime import backends, tasks
from runtime.bundle.bundle import Bundle
from runtime.bundle.engine_files import read_engine
from runtime.bundle.manifest import ANSWERS
from runtime.bundle.spec import Graph
from runtime.common.discovery import module_name
from runtime.parity.compare import compare_rows, settle_flips
from runtime.verification.answers.compare import check_preprocessing, read_answers

from built import small_bundle
from bundles import needs_openvino
from model_contract import (
    check_engine,
    check_portable,
    check_tensorrt,
    inputs_of,
    outputs_of,
    shape_of,
    short_variant,
    small,
)

pytestmark = [pytest.mark.torch, needs_openvino]

NODES = {"afl-net": ("CrossAttention", 4), "hsnet-hm": ("HybridMask", 3)}


def _built() -> list[str]:
    """Of each file with models one: that with weights that ship, else that of the file's name."""
    files: dict[str, list[str]] = {}
    for name in models.names():
        files.setdefault(models.entry(name).build.__module__, []).append(name)
    return [
        min(group, key=lambda name: (models.entry(name).weights is None, module_name(name) != file.rpartition(".")[2]))
        for file, group in files.items()
    ]


BUILT = _built()
"""The models that are built, opened and asked; the others of their files differ from them in a module."""

# Their graphs need no operator of edgevis.
STANDARD_ALONE = {"afl-net-no-attention"}

# The graphs that are the same for all models of a file: tests/edgevis/models/test_hsnet.py shows it.
COMMON_GRAPHS = {"edgevis.models.hsnet": ("query",)}

each_model = pytest.mark.parametrize("name", models.names())
# All tests of one model run in one worker, which builds its bundle once.
built_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in BUILT]
)


@pytest.fixture(scope="module")
def photographs() -> SampleSet:
    return samples_from_photographs(height=160, width=160, count=16)


@pytest.fixture
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model's bundle for the CPU in FP32, as the command line builds and proves it."""
    return Bundle(small_bundle(tmp_path_factory, request.getfixturevalue("name")))


def graphs_of(bundle: Bundle) -> Iterator[tuple[Graph, ModelProto]]:
    for graph in bundle.manifest.deployment.graphs:
        yield graph, onnx.load(bundle.path / "graphs" / f"{graph.name}.onnx")


@built_model
def test_from_pixel_to_answer(name: str, bundle: Bundle) -> None:
    """A predictor with each engine answered as with the PyTorch model, on the pictures that the bundle carries."""
    answers = read_answers(bundle)
    assert answers is not None
    assert answers.expected
    preprocessing = check_preprocessing(bundle, answers)
    assert preprocessing.exact, preprocessing.reason
    # What the build's gate found, with the bundle's own engines.
    assert set(answers.header.distances) == {record.name for record in bundle.manifest.engines}
    for record in bundle.manifest.engines:
        measured = answers.header.distances[record.name]
        assert set(measured) == set(answers.header.one_step)
        assert max(measured.values()) < 1e-3
    assert (bundle.path / ANSWERS).stat().st_size < 600_000


@each_model
def test_parameters_are_what_the_entry_and_the_paper_say(name: str) -> None:
    entry = models.entry(name)
    module = models.create(name)
    assert not module.training
    assert models.parameters(module) == entry.parameters
    assert entry.paper
    assert entry.licence
    if entry.printed is not None:
        counts = models.parameter_counts(entry, module)
        digits = len(entry.printed.text.split()[0].partition(".")[2])
        ours = {
            "total": counts.total,
            "without classifier": counts.without_classifier,
            "trainable": counts.trainable,
        }[entry.printed.counted]
        assert round(ours / 1e6, digits) == pytest.approx(entry.printed.parameters / 1e6, abs=0.5 * 10**-digits)


@each_model
def test_the_default_build_has_the_declared_deployment(name: str) -> None:
    entry = models.entry(name)
    assert models.deployment_of(entry, models.create(name)) == entry.deployment


@each_model
def test_graphs_give_what_is_declared_and_rows_do_not_mix(name: str) -> None:
    module, deployment = small(name)
    for graph in deployment.graphs:
        inputs = inputs_of(graph, 2, 1)
        together = outputs_of(module, graph, inputs)
        for tensor in graph.outputs:
            assert together[tensor.name].dtype == tensor.dtype
            assert together[tensor.name].shape == shape_of(tensor.shape, 2, 1)
        if graph.set_of:  # its members are there for each other
            continue
        batched = {tensor.name for tensor in graph.inputs if tensor.batched}
        second = {key: array[1:] if key in batched else array for key, array in inputs.items()}
        alone = outputs_of(module, graph, second)
        for key, array in alone.items():
            # Other summation orders at batch 1 and 2: float32 rounding, no more.
            error, _ = compare_rows(array, settle_flips(array, together[key][1:], graph.max_flipped)[0])
            assert error < 1e-4, key


@built_model
def test_onnx_is_portable(name: str, bundle: Bundle) -> None:
    for graph, model in graphs_of(bundle):
        own = check_portable(model)
        if graph is bundle.manifest.deployment.graphs[0] and name in NODES:
            node, count = NODES[name]
            assert own.count(node) >= count


@built_model
def test_engines_compute_what_pytorch_computes(name: str, bundle: Bundle) -> None:
    assert [engine.name for engine in bundle.manifest.engines] == ["onnxruntime-fp32", "openvino-fp32"]
    assert all(engine.holds_parity for engine in bundle.manifest.engines)
    module, deployment = small(name)
    for record in bundle.manifest.engines:
        for graph in deployment.graphs:
            engine = backends.load(record.backend).open_engine(
                bundle.engine_files(record.files[graph.name]), precision="fp32", device="cpu", threads=1
            )
            check_engine(engine, graph, module, deployment)


@built_model
def test_tensorrt_builds_it_in_every_precision(name: str, bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for x86-64 only")
    for graph, model in graphs_of(bundle):
        check_tensorrt(model, graph, bundle.manifest.deployment, tmp_path)


@pytest.mark.parametrize("name", sorted(set(models.names()) - set(BUILT)))
def test_a_variant_s_graphs_in_every_engine(name: str, tmp_path: Path) -> None:
    """What a variant computes in other ways than the model of its file that is built."""
    module, deployment = short_variant(name)
    for graph in deployment.graphs:
        if graph.name in COMMON_GRAPHS.get(models.entry(name).build.__module__, ()):
            continue
        model = onnx_from_module(module, graph)
        own = check_portable(model)
        assert not own or name not in STANDARD_ALONE
        graph_path(tmp_path, graph.name).parent.mkdir(exist_ok=True)
        onnx.save(model, graph_path(tmp_path, graph.name))
        for backend in ("onnxruntime", "openvino"):
            path = compilers.load(backend).engine_from_onnx(model, graph=graph.name, precision="fp32", bundle=tmp_path)
            engine = backends.load(backend).open_engine(read_engine(path), precision="fp32", device="cpu", threads=1)
            check_engine(engine, graph, module, deployment)
        if importlib.util.find_spec("tensorrt_rtx_bindings") is not None:  # wheels for x86-64 only
            check_tensorrt(model, graph, deployment, tmp_path)


@built_model
def test_predictor_round_trip(name: str, bundle: Bundle, photographs: SampleSet, tmp_path: Path) -> None:
    images = list(photographs.images[:3])
    with Predictor(bundle.path) as predictor:
        predictor.warmup()
        if _enrols(predictor):
            _enroll(predictor, photographs)
            first = predictor.predict(images)
            predictor.save(tmp_path / "first.enrolment")
            with Predictor(bundle.path, backend="onnxruntime") as other:
                other.load(tmp_path / "first.enrolment")
                assert other.labels == predictor.labels == ("one", "two")
                for again, result in zip(other.predict(images), first, strict=True):
                    _assert_same(again, result)
            predictor.forget("one")
            assert predictor.labels == ("two",)
        if not _enrols(predictor):
            predictor.threshold = 0.0  # what random weights score
        for image, result in zip(images, predictor.predict(images), strict=True):
            picture = result.plot(image)
            assert picture.shape == image.shape
            assert (picture != image).any()
            assert set(result.speed_ms) == {"preprocess", "inference", "postprocess"}
            assert result.to_dict()
            if isinstance(result, Segmentation):
                assert result.mask.shape == result.probability.shape == result.label_map.shape == image.shape[:2]
                assert result.labels == predictor.labels
                assert 0 <= result.probability.min() <= result.probability.max() <= 1
            if isinstance(result, Detections):
                assert 0 < len(result) <= 100
                assert set(result.labels) <= set(predictor.labels)
                assert len(result.crops(image)) == len(result)


@built_model
def test_what_is_wrong_is_refused_and_changes_nothing(name: str, bundle: Bundle, photographs: SampleSet) -> None:
    image, mask = photographs.images[0], photographs.with_masks().masks[0]
    with Predictor(bundle.path, backend="onnxruntime") as predictor:
        known = predictor.labels
        needs_masks = predictor.info.task == "few_shot_segment"
        good: dict[str, Any] = {"masks": [mask]} if needs_masks else {}
        wrong: list[tuple[Any, Any]] = [
            ([], None),
            (np.zeros((8, 8, 17), np.uint8), mask if needs_masks else None),
            (image.astype(np.float32) * np.nan, mask if needs_masks else None),
        ]
        if needs_masks:
            wrong += [
                (image, None),
                (image, mask[:-1]),
                (image, np.zeros_like(mask)),
                (image, [mask, mask]),
                ([image, image], [mask]),
                (image, mask * 1.0),
            ]
        else:
            wrong += [(image, mask)]
        for images, masks in wrong:
            with pytest.raises((InputError, EnrolmentError)):
                predictor.enroll("new", images, masks=masks)
            assert predictor.labels == known
        assert predictor.predict([]) == []
        with pytest.raises(InputError):
            predictor.predict(np.zeros((8, 8, 17), np.uint8))
        if _enrols(predictor):
            predictor.enroll("new", [image], **good)
            assert predictor.labels == ("new",)


@built_model
def test_engines_that_share_enrolments_share_the_threshold(
    name: str, bundle: Bundle, photographs: SampleSet, tmp_path: Path
) -> None:
    """What one engine enrolled, and strangers that it was calibrated on, give another one the same threshold."""
    sharing = [record for record in bundle.manifest.engines if record.shares_enrolments]
    with Predictor(bundle.path, backend=sharing[0].backend, precision=sharing[0].precision) as first:
        if first.info.open_set is None:
            with pytest.raises(InputError, match="no scores between labels"):
                Predictor(bundle.path, index_from=1000)
            return
        for index, label in enumerate(("anna", "björn", "chloé")):
            first.enroll(label, list(photographs.images[2 * index : 2 * index + 2]))
        first.save(tmp_path / "estimated.enrolment")
        estimated = first.info.open_set
        calibrated = first.calibrate([*photographs.images[6:], *(image[:, ::-1] for image in photographs.images[6:])])
        first.save(tmp_path / "calibrated.enrolment")
    assert calibrated.expected_fpir is not None
    for record in sharing[1:]:
        with Predictor(bundle.path, backend=record.backend, precision=record.precision) as other:
            other.load(tmp_path / "estimated.enrolment")
            assert other.threshold == pytest.approx(estimated.threshold, abs=1e-3)
            other.load(tmp_path / "calibrated.enrolment")
            assert other.threshold == pytest.approx(calibrated.threshold, abs=1e-3)
            # Strangers that this engine embeds itself move it by no more than the interval of the rate allows.
            strangers = other.calibrate(
                [*photographs.images[6:], *(image[:, ::-1] for image in photographs.images[6:])]
            )
            assert strangers.threshold == pytest.approx(calibrated.threshold, abs=0.02)


def _enrols(predictor: Predictor) -> bool:
    return tasks.load(predictor.info.task).TRAITS.enrolment != "nothing"


def _enroll(predictor: Predictor, photographs: SampleSet) -> None:
    masked = photographs.with_masks()
    masks = predictor.info.task == "few_shot_segment"
    for label, rows in (("one", [0, 1]), ("two", [2])):
        predictor.enroll(
            label, [masked.images[row] for row in rows], masks=[masked.masks[row] for row in rows] if masks else None
        )


def _assert_same(again: Any, result: Any) -> None:
    if isinstance(result, Segmentation):
        assert (again.label_map == result.label_map).mean() > 0.999
        np.testing.assert_allclose(again.probability, result.probability, atol=1e-3)
    else:
        assert again.label == result.label
        assert again.score == pytest.approx(result.score, abs=1e-4)
