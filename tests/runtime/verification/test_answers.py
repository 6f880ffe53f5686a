"""From pixel to answer: what preprocessing, open-set values and postprocessing make wrong, `edgevis verify` tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevis.cli import main
from runtime.backends import NO_ARRAYS
from runtime.bundle.bundle import Bundle, sha256
from runtime.bundle.manifest import ANSWERS
from runtime.common.arrays import Array, read_arrays, write_arrays
from runtime.common.json_data import to_json
from runtime.errors import IntegrityError
from runtime.open_set.generic import generic
from runtime.sessions.session import Session
from runtime.verification.answers.compare import check_preprocessing, compared, distances, read_answers
from runtime.verification.answers.exercise import RATES
from runtime.verification.answers.file import Answers, AnswersHeader, answers_from, arrays_of
from runtime.verification.answers.reference import reference_answers
from runtime.verification.verify import verify_bundle

from bundles import (
    DIMENSION,
    HEIGHT,
    WIDTH,
    Tiny,
    TinyEngine,
    edited_manifest,
    expected_embeddings,
    textured,
    tiny_weights,
    write_tiny_bundle,
)
from python_processes import run_python


def space_arrays() -> dict[str, Array]:
    """A score space of its own for embeddings of the tiny model."""
    random = np.random.default_rng(3)
    cohort = random.standard_normal((6, DIMENSION))
    return {
        "mean": random.normal(0, 0.1, DIMENSION).astype(np.float32),
        "whitening": (np.eye(DIMENSION) + 0.1).astype(np.float32),
        "cohort": (cohort / np.linalg.norm(cohort, axis=1, keepdims=True)).astype(np.float16),
        "normalisation": np.array([2, 0.5, 0.1]),
    }


TINY = Tiny(
    engines=[TinyEngine(), TinyEngine(precision="int8")],
    postprocess={"open_set": to_json(generic("nearest"))},
    open_set=space_arrays(),
)
SIZES = ((HEIGHT, WIDTH), (21, 15), (57, 31), (29, 44), (40, 40), (17, 9), (64, 32))
HEADER = AnswersHeader(
    "drawn in code", to_json(TINY.deployment), (-1, 0, 1, 0, 1, 0, 2), (False, True, True, True, True, False, False)
)


class NumpyEngine:
    """The tiny model in NumPy and float64: what the engines' answers are compared with."""

    inputs, outputs = ("image",), ("embedding",)

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        return {"embedding": expected_embeddings(feeds["image"], TINY.weights).astype(np.float32)}

    def close(self) -> None:
        pass


def numpy_answers(bundle: Bundle) -> Answers:
    pictures = tuple(textured(80 + index, *size) for index, size in enumerate(SIZES))
    masks = (None,) * len(pictures)
    session = Session(NumpyEngine(), TINY.graph, max_batch=4)
    return reference_answers(bundle, {"embed": session}, HEADER, pictures, masks)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle that carries answers; nobody may write to it."""
    path = write_tiny_bundle(tmp_path_factory.mktemp("answers") / "tiny.edgevis", TINY)
    put(path, arrays_of(numpy_answers(Bundle(path))))
    return path


def put(bundle: Path, arrays: Mapping[str, Array]) -> None:
    """Write a bundle's answers, as if it had been built with them."""
    write_arrays(bundle / ANSWERS, arrays)
    listed(bundle)


def listed(bundle: Path) -> None:
    file = bundle / ANSWERS
    with edited_manifest(bundle) as data:
        data["files"][ANSWERS] = {"size_bytes": file.stat().st_size, "sha256": sha256(file)}


@pytest.fixture
def own(answered: Path, tmp_path: Path) -> Path:
    """The same bundle, the test's own."""
    return Path(shutil.copytree(answered, tmp_path / "own.edgevis"))


def declared_anew(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the deployment in the manifest, and in answers.npz what it was declared as: only running it can tell."""
    with edited_manifest(bundle) as data:
        edit(data["deployment"])
        deployment = data["deployment"]
    arrays = read_arrays(bundle / ANSWERS, error=IntegrityError)
    header = {**json.loads(arrays["header"].tobytes()), "deployment": deployment}
    put(bundle, {**arrays, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)})


def test_a_sound_bundle(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle(answered)
    answers = read_answers(bundle)
    assert answers is not None
    assert answers.expected["operating"].shape == (3, len(RATES), 7)
    assert answers.expected["scores"].shape == (2, 2)
    assert check_preprocessing(bundle, answers).exact
    for check in verify_bundle(bundle):
        assert check.status == "passed", check.reason
        assert check.answers is not None
        assert set(check.answers.distances) == {"embedding", "operating point", "scores", "decisions"}
    assert main(["verify", str(answered)]) == 0
    text = capsys.readouterr().out
    assert f"preprocessing: {len(SIZES)} pictures become the build's input tensors exactly" in text
    assert text.count(" holds") == 2
    assert main(["verify", str(answered), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["digest"] == bundle.manifest.digest
    assert data["preprocessing"]["status"] == "passed"


def mean_off(deployment: dict[str, Any]) -> None:
    deployment["preprocess"]["mean"][1] *= 1.001


PREPROCESSING: dict[str, Callable[[dict[str, Any]], None]] = {
    "BGR for RGB": lambda deployment: deployment["preprocess"].update(color="BGR"),
    "mean off by 0.1 %": mean_off,
    "std off": lambda deployment: deployment["preprocess"].update(std=[0.25, 0.3, 0.352]),
    "no normalisation": lambda deployment: deployment["preprocess"].update(mean=[0, 0, 0], std=[1, 1, 1]),
    "no /255": lambda deployment: deployment["preprocess"].update(scale=1.0),
    "letterbox": lambda deployment: deployment["preprocess"].update(fit="letterbox"),
    "centre crop": lambda deployment: deployment["preprocess"].update(fit="center-crop"),
    "area": lambda deployment: deployment["preprocess"].update(interpolation="area"),
    "cubic": lambda deployment: deployment["preprocess"].update(interpolation="cubic"),
    "nearest": lambda deployment: deployment["preprocess"].update(interpolation="nearest"),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_pixels_tell_of_other_preprocessing(own: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    declared_anew(own, PREPROCESSING[name])
    assert main(["verify", str(own)]) == 1
    text = capsys.readouterr().out
    assert "preprocessing: failed: preprocessing differs: picture " in text
    # The engines themselves are right, and are said to be: nothing is said of a graph.
    assert "graph 'embed'" not in text


OPEN_SET: dict[str, Callable[[dict[str, Any]], None]] = {
    "a constant": lambda known: known["models"][0]["coefficients"][2].__setitem__(0, -0.5),
    "the last model": lambda known: known["models"][-1]["coefficients"][1].__setitem__(0, 0.9),
    "rates": lambda known: known.update(rates=[rate / 2 for rate in known["rates"]]),
    "what was measured": lambda known: [item.update(fpir=0.5) for item in known["measured"]],
    "scoring": lambda known: known.update(scoring="blend"),
}


@pytest.mark.parametrize("name", OPEN_SET)
def test_answers_tell_of_other_open_set_values(own: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    declared_anew(own, lambda deployment: OPEN_SET[name](deployment["postprocess"]["open_set"]))
    fp32 = verify_bundle(Bundle(own))[0]
    assert fp32.status == "failed"
    assert fp32.reason.startswith("from pixel to answer: ")
    assert main(["verify", str(own)]) == 1
    text = capsys.readouterr().out
    assert "become the build's input tensors exactly" in text
    assert " beyond" in text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda deployment: deployment["preprocess"].update(pad_value=115), r"\.preprocess\.pad_value is 115; .* 114"),
        (lambda deployment: deployment.update(max_batch=8), r"\.max_batch is 8; the bundle was built with 4"),
        (
            lambda deployment: deployment["postprocess"]["open_set"].update(same=0.1),
            r"\.postprocess\.open_set\.same is 0\.1",
        ),
        (
            lambda deployment: deployment["postprocess"].update(false_accept_rate=0.2),
            r"\.postprocess\.false_accept_rate is 0\.2; the bundle was built with None",
        ),
    ],
)
def test_a_manifest_that_was_signed_anew_is_not_what_the_answers_were_made_with(
    own: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    with edited_manifest(own) as data:
        edit(data["deployment"])
    checks = verify_bundle(Bundle(own))
    assert [check.status for check in checks] == ["failed", "failed"]
    with pytest.raises(AssertionError, match="the manifest's deployment" + message):
        raise AssertionError(checks[0].reason)


def test_a_score_space_of_another_model(own: Path) -> None:
    other = {**space_arrays(), "mean": np.zeros(DIMENSION, np.float32)}
    write_arrays(own / "open_set.npz", other)
    with edited_manifest(own) as data:
        record = {"size_bytes": (own / "open_set.npz").stat().st_size, "sha256": sha256(own / "open_set.npz")}
        data["files"]["open_set.npz"] = record
    assert "scores off by" in verify_bundle(Bundle(own))[0].reason


def test_the_engine_of_another_model(own: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other.edgevis", Tiny(weights=tiny_weights(1)))
    name = "engines/onnxruntime-fp32/embed.onnx"
    shutil.copy(other / name, own / name)
    with edited_manifest(own) as data:
        data["files"][name] = {"size_bytes": (own / name).stat().st_size, "sha256": sha256(own / name)}
    fp32, int8 = verify_bundle(Bundle(own))
    assert fp32.answers is not None
    assert "embedding" in fp32.answers.beyond
    assert int8.status == "passed"


# An OpenCV that resizes otherwise. The function is replaced in a process of its own, before edgevis is imported.

RESIZING = """
import sys
import cv2
import numpy as np

real = cv2.resize

def shifted(image, size, interpolation=cv2.INTER_LINEAR):
    # Corners aligned in place of pixels' centres, a common other reading of "bilinear".
    if interpolation != cv2.INTER_LINEAR or image.dtype != np.uint8:
        return real(image, size, interpolation=interpolation)
    x, y = (np.linspace(0, old - 1, new, dtype=np.float32) for old, new in zip(image.shape[1::-1], size))
    return cv2.remap(image, *np.meshgrid(x, y), cv2.INTER_LINEAR)

def averaged(image, size, interpolation=cv2.INTER_LINEAR):
    # What Pillow and PyTorch's antialias do: shrinking averages.
    other = cv2.INTER_AREA if interpolation == cv2.INTER_LINEAR else interpolation
    return real(image, size, interpolation=other)

def rounded_down(image, size, interpolation=cv2.INTER_LINEAR):
    made = real(image, size, interpolation=interpolation)
    return made - (made > 0) if made.dtype == np.uint8 else made

cv2.resize = globals()[sys.argv[2]]
from edgevis.cli import main
sys.exit(main(["verify", sys.argv[1]]))
"""


@pytest.mark.parametrize("other", ["shifted", "averaged"])
def test_an_opencv_that_resizes_otherwise(answered: Path, other: str) -> None:
    done = run_python(RESIZING, answered, other)
    assert done.returncode == 1, done.stderr
    assert "preprocessing: failed: preprocessing differs: picture 1 (21 x 15 pixels), max difference " in done.stdout
    assert "the OpenCV of this machine does not resize" in done.stdout
    assert "graph 'embed'" not in done.stdout


def test_an_opencv_that_rounds_otherwise_is_sound(answered: Path) -> None:
    done = run_python(RESIZING, answered, "rounded_down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "become the build's input tensors within 1 steps of 0..255" in done.stdout


# The file


def test_what_is_written_is_what_is_read(answered: Path) -> None:
    bundle = Bundle(answered)
    answers = read_answers(bundle)
    assert answers is not None
    again = answers_from(arrays_of(answers), TINY.preprocess.input)
    assert again.header == answers.header
    for one, other in zip((*again.pictures, *again.inputs), (*answers.pictures, *answers.inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    for index, size in enumerate(SIZES):
        np.testing.assert_array_equal(answers.pictures[index], textured(80 + index, *size))


def header(**fields: object) -> Array:
    data = {**to_json(HEADER), **fields}
    return np.frombuffer(json.dumps(data).encode(), np.uint8)


@pytest.mark.parametrize(
    "lie",
    [
        {"header": None},
        {"header": np.frombuffer(b"{", np.uint8)},
        {"header": np.zeros(3)},
        {"header": header(version=2)},
        {"header": header(shows=[], enrolled=[])},
        {"header": header(shows=[0] * 17, enrolled=[True] * 17)},
        {"header": header(enrolled=[True])},
        {"header": header(shows=[-1] * 7)},
        {"header": header(surprise=1)},
        {"header": header(distances={"onnxruntime-fp32": {"scores": "far"}})},
        {"picture/1": None},
        {"picture/1": np.zeros((4, 4, 3), np.float32)},
        {"picture/1": np.zeros((4, 4), np.uint8)},
        {"picture/1": np.zeros((0, 4, 3), np.uint8)},
        {"picture/1": np.zeros((4, 4, 4), np.uint8)},
        {"mask/1": np.zeros((4, 4), np.uint8)},
        {"mask/1": np.zeros((21, 2), bool)},
        {"input/2": None},
        {"input/2": np.zeros((3, HEIGHT, WIDTH + 1), np.uint8)},
        {"levels": np.zeros((3, 1), np.float32)},
        {"levels": np.zeros((2, 256), np.float32)},
        {"expected/scores": np.array(["a"])},
    ],
    ids=str,
)
def test_a_file_that_lies(own: Path, lie: dict[str, Array | None]) -> None:
    arrays = {**read_arrays(own / ANSWERS, error=IntegrityError), **lie}
    put(own, {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(IntegrityError, match=r"answers\.npz"):
        verify_bundle(Bundle(own))


def test_a_file_that_is_damaged_or_pickled(own: Path) -> None:
    whole = (own / ANSWERS).read_bytes()
    (own / ANSWERS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError):
        verify_bundle(Bundle(own))
    listed(own)
    with pytest.raises(IntegrityError, match="is damaged"):
        verify_bundle(Bundle(own))
    np.savez(own / ANSWERS, header=np.array([{"a": 1}], object))
    listed(own)
    with pytest.raises(IntegrityError, match="is damaged"):
        verify_bundle(Bundle(own))


@pytest.mark.parametrize("change", ["missing", "shape", "nan"])
def test_answers_that_cannot_be_compared_are_infinitely_far(answered: Path, change: str) -> None:
    answers = read_answers(Bundle(answered))
    assert answers is not None
    found = dict(answers.expected)
    if change == "missing":
        del found["scores"]
    elif change == "shape":
        found["scores"] = found["scores"][:, :1]
    else:
        found["scores"] = np.full_like(found["scores"], np.nan)
    assert not distances(answers.expected, found)["scores"] <= 1
    assert "scores" in compared(answers.expected, found, "int8", {}).beyond


def test_a_decision_counts_where_it_does_not_hang_on_rounding() -> None:
    expected = {
        "operating": np.full((1, 1, 7), 0.5),
        "scores": np.array([[0.9, 0.1], [0.501, 0.1], [0.8, 0.7999], [0.1, 0.0999]]),
        "accepted": np.array([0, 0, 0, -1], np.int32),
    }
    found = {**expected, "accepted": np.array([1, -1, 1, 1], np.int32)}
    assert distances(expected, found)["decisions"] == 4
    assert distances(expected, found, undecided=0.01)["decisions"] == 2  # the first is clear, and so is nobody
    check = compared(expected, found, "fp32", {})
    assert check.beyond == ("decisions",)
    assert "decisions off by 2, allowed 0" in check.reason


def test_an_embedding_that_is_nothing() -> None:
    rows = np.array([[0.6, 0.8], [0.0, 0.0]])
    assert distances({"embedding": rows}, {"embedding": rows})["embedding"] == pytest.approx(0, abs=1e-12)
    assert distances({"embedding": rows}, {"embedding": rows[[0, 0]]})["embedding"] == 1
    assert not distances({"embedding": rows}, {"embedding": np.full((2, 2), np.nan)})["embedding"] <= 1
