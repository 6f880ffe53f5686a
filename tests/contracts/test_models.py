"""The contract of every model that is found: what its file declares, it keeps, from PyTorch to a Predictor.

A new file in edgevis/models is tested here unasked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, inliner, shape_inference
from torch import nn

from calibration.data.samples import SampleSet, samples_from_photographs
from calibration.quantize.graph import quantize
from calibration.quantize.lint import lint_quantized
from edgevis import Detections, EnrolmentError, InputError, Predictor, Segmentation, models
from edgevis.provenance import read_provenance
from export import targets
from export.autocast import fp16_from_fp32
from export.cpu_proxy import CpuProxy
from export.profiles import ShapeProfileRequest, profiles_of
from runtime import backends, tasks
from runtime.backends._tensorrt.compiler import build_engine
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import ANSWERS
from runtime.bundle.spec import Deployment, Graph, Preprocess
from runtime.common.arrays import Array
from runtime.images.preprocess import Preprocessor
from runtime.parity.compare import TOLERANCES, compare_rows, settle_flips
from runtime.sessions.session import Session
from runtime.verification.answers.compare import check_preprocessing, read_answers

from built import SMALL, small_bundle
from bundles import needs_openvino

pytestmark = [pytest.mark.torch, needs_openvino]

NODES = {"afl-net": ("CrossAttention", 4), "hsnet-hm": ("HybridMask", 3)}
# Batch and shots: one image, any number, the largest batch, several shots.
SIZES = ((1, 1), (2, 1), (3, 2), (8, 1))
MAX_RANK = 5
FLOAT16_MIN_COSINE = 0.999

# All tests of one model run in one worker, which builds its bundle once.
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in models.names()]
)


def small(name: str) -> tuple[nn.Module, Deployment]:
    """The module that the bundle was built from."""
    options = SMALL.get(name, {})
    shipped = models.shipped_weights(name, options)
    provenance = None if shipped is None else read_provenance(shipped)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = models.create(name, **{**({} if provenance is None else provenance.options), **options})
    if shipped is not None:
        models.load_weights(module, shipped)
    return module, models.deployment_of(models.entry(name), module)


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


def inputs_of(
    graph: Graph, batch: int, shots: int, *, seed: int = 0, preprocess: Preprocess | None = None
) -> dict[str, Array]:
    """Random inputs of the range that real ones have; masks are discs.

    A detector is given photographs where ``preprocess`` says how: a trained one has scores of 1e-8 for noise, which
    engines round in their own ways.
    """
    random = np.random.default_rng(seed)
    if graph.name == "detect" and preprocess is not None:
        photographs = samples_from_photographs(height=preprocess.height, width=preprocess.width, count=16).images
        chosen = random.choice(len(photographs), batch, replace=False)
        return {"image": Preprocessor(preprocess)([photographs[number] for number in chosen])}
    inputs: dict[str, Array] = {}
    for tensor in graph.inputs:
        shape = shape_of(tensor.shape, batch, shots)
        if tensor.name == "mask":
            rows, columns = np.mgrid[: shape[1], : shape[2]]
            middle = random.uniform(0.3, 0.7, (batch, 2, 1, 1)) * np.array(shape[1:])[:, None, None]
            distance = np.hypot(rows - middle[:, :1, 0, 0][:, None], columns - middle[:, 1:, 0, 0][:, None])
            inputs[tensor.name] = (distance < min(shape[1:]) / 3).astype(np.float32)
        else:
            inputs[tensor.name] = random.standard_normal(shape).astype(np.float32)
            if tensor.name.startswith("support"):  # unit features
                inputs[tensor.name] /= np.linalg.norm(inputs[tensor.name], axis=-2, keepdims=True)
    return inputs


def shape_of(declared: tuple[int | str, ...], batch: int, shots: int) -> tuple[int, ...]:
    sizes = {"N": batch, "K": shots}
    return tuple(sizes[size] if isinstance(size, str) else size for size in declared)


def outputs_of(module: nn.Module, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    with torch.no_grad():
        made = getattr(module, graph.name)(*(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs))
    values = made if isinstance(made, tuple) else (made,)
    return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, values, strict=True)}


@each_model
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
        batched = {tensor.name for tensor in graph.inputs if tensor.batched}
        second = {key: array[1:] if key in batched else array for key, array in inputs.items()}
        alone = outputs_of(module, graph, second)
        for key, array in alone.items():
            # Other summation orders at batch 1 and 2: float32 rounding, no more.
            error, _ = compare_rows(array, settle_flips(array, together[key][1:], graph.max_flipped)[0])
            assert error < 1e-4, key


@each_model
def test_onnx_is_portable(name: str, bundle: Bundle) -> None:
    """Standard operators and edgevis's own with their definition, no Einsum, no tensor of a rank that engines lack."""
    for graph, model in graphs_of(bundle):
        onnx.checker.check_model(model, full_check=True)
        own = [node.op_type for node in model.graph.node if node.domain == "edgevis"]
        assert {node.domain for node in model.graph.node} <= {"", "edgevis"}
        assert {function.name for function in model.functions} == set(own)
        if graph is bundle.manifest.deployment.graphs[0] and name in NODES:
            node, count = NODES[name]
            assert own.count(node) >= count
        flat = shape_inference.infer_shapes(inliner.inline_local_functions(model), strict_mode=True, data_prop=True)
        assert not [node for node in flat.graph.node if node.op_type == "Einsum"]
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*flat.graph.value_info, *flat.graph.input, *flat.graph.output)
        }
        assert {key: rank for key, rank in ranks.items() if rank > MAX_RANK} == {}


@each_model
def test_engines_compute_what_pytorch_computes(name: str, bundle: Bundle) -> None:
    """At batches that the build's parity gate does not run, and with several shots."""
    assert [engine.name for engine in bundle.manifest.engines] == ["onnxruntime-fp32", "openvino-fp32"]
    assert all(engine.holds_parity for engine in bundle.manifest.engines)
    module, deployment = small(name)
    tolerance = TOLERANCES["fp32"].max_relative_error
    assert tolerance is not None
    for record in bundle.manifest.engines:
        for graph in deployment.graphs:
            engine = backends.load(record.backend).open_engine(
                bundle.engine_files(record.files[graph.name]), precision="fp32", device="cpu", threads=1
            )
            session = Session(engine, graph, max_batch=64)
            for batch, shots in SIZES:
                inputs = inputs_of(graph, batch, shots, seed=batch, preprocess=deployment.preprocess)
                wanted = outputs_of(module, graph, inputs)
                for key, array in session.run(inputs).items():
                    settled, _ = settle_flips(wanted[key], array, graph.max_flipped)
                    error, cosines = compare_rows(wanted[key], settled)
                    assert error < tolerance, (record.name, graph.name, key, batch, shots)
                    assert cosines.min() > 0.9999
            session.close()


@each_model
def test_tensorrt_builds_it_in_every_precision(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """With TensorRT-RTX, which needs no GPU for that, as the GPU targets cast and quantise the graphs.

    The very graphs are run by ONNX Runtime: in float16 they compute what the float32 ones do.
    """
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for x86-64 only")
    target = targets.load("rtx")
    deployment = bundle.manifest.deployment
    profiles = profiles_of(deployment, ShapeProfileRequest(), usual_batch=target.usual_batch)
    for graph, model in graphs_of(bundle):
        feeds = [inputs_of(graph, 1, 1, preprocess=deployment.preprocess)]
        half = fp16_from_fp32(model, feeds)
        quantized = fp16_from_fp32(quantize(model, feeds), feeds)
        lint_quantized(quantized)
        wanted, found = run(model, feeds[0], tmp_path), run(half, feeds[0], tmp_path)
        for key, array in found.items():
            assert compare_rows(wanted[key], array)[1].mean() > FLOAT16_MIN_COSINE, (graph.name, key)
        assert any((wanted[key] != array).any() for key, array in found.items()), "float16 rounds"
        run(quantized, feeds[0], tmp_path)
        for precision, made in (("fp16", half), ("int8", quantized)):
            spec = target.spec(profiles[graph.name], precision)
            assert spec.compute_capabilities == ("SM80", "SM86", "SM89", "SM120")
            assert len(build_engine(made.SerializeToString(), spec, flavour="tensorrt_rtx").plan) > 1000


def run(model: ModelProto, feed: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """What ONNX Runtime makes of it; no value may be infinite or NaN."""
    onnx.save(model, folder / "model.onnx")
    made = CpuProxy(folder / "model.onnx").run(feed)
    assert all(np.isfinite(array).all() for array in made.values())
    return made


@each_model
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


@each_model
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


@each_model
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
