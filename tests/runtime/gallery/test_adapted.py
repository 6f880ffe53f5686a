"""Labels by adapted prototypes: what is enrolled, searched, saved and forgotten, by real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adapted_bundles import TINY, expected_adapted, write_adapted_bundle

from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import MAX_LABELS
from runtime.common.arrays import unit_rows
from runtime.enrolment.file import load_enrolment
from runtime.errors import EnrolmentMismatchError, InputError, SchemaError, UnknownLabelError
from runtime.gallery.adapted import AdaptedGallery
from runtime.open_set.decision import OpenSet
from runtime.predictor import Predictor
from runtime.results import Classification
from runtime.tasks._embedding import EmbeddingTask
from runtime.verification.verify import verify_bundle

from bundles import Array, Tiny, TinyEngine, expected_embeddings, needs_openvino, textured, write_tiny_bundle

SHOTS = {"apple": (1, 2), "pear": (3,), "plum": (4, 5, 6)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapted_bundle(tmp_path_factory.mktemp("adapted") / "tiny.edgevis")


@pytest.fixture
def predictor(bundle: Path) -> Iterator[Predictor]:
    with Predictor(bundle, threads=1) as predictor:
        yield predictor


def shot(seed: int) -> Array:
    return textured(seed, 32, 16)


def embeddings_of(seeds: tuple[int, ...]) -> Array:
    spec = TINY.preprocess
    pixels = np.stack([shot(seed)[..., ::-1] for seed in seeds]) * spec.scale
    return expected_embeddings(((pixels - spec.mean) / spec.std).transpose(0, 3, 1, 2), TINY.weights)


def expected_scores(shots: dict[str, tuple[int, ...]], queries: tuple[int, ...]) -> Array:
    """(Q, L) cosines of queries with adapted prototypes, in float64."""
    prototypes = expected_adapted(np.stack([embeddings_of(seeds).mean(axis=0) for seeds in shots.values()]))
    return np.asarray(unit_rows(embeddings_of(queries)) @ unit_rows(prototypes).T)


def enroll(predictor: Predictor, shots: dict[str, tuple[int, ...]] = SHOTS) -> None:
    for label, seeds in shots.items():
        predictor.enroll(label, [shot(seed) for seed in seeds])


def scores(predictor: Predictor, queries: tuple[int, ...]) -> Array:
    """(Q, L) in the order of the labels."""
    results = predictor.predict([shot(seed) for seed in queries], top_k=len(predictor.labels))
    assert all(isinstance(result, Classification) for result in results)
    rows = [dict(zip(result.labels, result.scores, strict=True)) for result in results]
    return np.array([[row[label] for label in predictor.labels] for row in rows])


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_scores_are_cosines_to_adapted_prototypes(backend: str, tmp_path: Path) -> None:
    path = write_adapted_bundle(tmp_path / "tiny.edgevis", [TinyEngine(backend)])
    with Predictor(path, threads=1) as predictor:
        enroll(predictor)
        np.testing.assert_allclose(scores(predictor, (7, 8, 1)), expected_scores(SHOTS, (7, 8, 1)), atol=1e-5)


def test_removing_a_label_adapts_the_others_anew(predictor: Predictor) -> None:
    enroll(predictor)
    before = scores(predictor, (7, 8))
    predictor.forget("pear")
    rest = {label: seeds for label, seeds in SHOTS.items() if label != "pear"}
    after = scores(predictor, (7, 8))
    np.testing.assert_allclose(after, expected_scores(rest, (7, 8)), atol=1e-5)
    assert np.abs(after - before[:, [0, 2]]).max() > 1e-3
    predictor.forget("plum")
    np.testing.assert_allclose(scores(predictor, (7,)), expected_scores({"apple": (1, 2)}, (7,)), atol=1e-5)
    predictor.forget("apple")
    assert predictor.labels == ()
    with pytest.raises(UnknownLabelError, match="'apple' is not enrolled"):
        predictor.forget("apple")


def test_more_images_move_the_raw_prototype(predictor: Predictor) -> None:
    enroll(predictor)
    predictor.enroll("pear", shot(9))
    moved = {**SHOTS, "pear": (3, 9)}
    np.testing.assert_allclose(scores(predictor, (7,)), expected_scores(moved, (7,)), atol=1e-5)


def test_an_enrolment_keeps_embeddings_with_their_lengths(predictor: Predictor, bundle: Path, tmp_path: Path) -> None:
    enroll(predictor)
    path = tmp_path / "fruit.enrolment"
    predictor.save(path)
    rows = load_enrolment(path).rows
    assert list(rows) == list(SHOTS)
    for label, seeds in SHOTS.items():
        np.testing.assert_allclose(rows[label], embeddings_of(seeds), rtol=1e-4, atol=1e-5)
    with Predictor(bundle, threads=1) as other:
        other.load(path)
        np.testing.assert_allclose(scores(other, (7, 8)), scores(predictor, (7, 8)), atol=1e-6)
        other.enroll("fig", shot(10))
        other.update(path)
        predictor.update(path)  # takes over what the other one enrolled
        assert predictor.labels == (*SHOTS, "fig")
        np.testing.assert_allclose(scores(predictor, (7,)), scores(other, (7,)), atol=1e-6)


def test_an_enrolment_without_the_graph_is_another_encoders(predictor: Predictor, tmp_path: Path) -> None:
    with Predictor(write_tiny_bundle(tmp_path / "plain.edgevis", TINY), threads=1) as plain:
        enroll(plain)
        plain.save(tmp_path / "plain.enrolment")
    with pytest.raises(EnrolmentMismatchError, match="was made by another encoder"):
        predictor.load(tmp_path / "plain.enrolment")


def test_a_frame_runs_the_encoder_alone(predictor: Predictor) -> None:
    enroll(predictor)
    predictor.threshold = 0.5
    expected = scores(predictor, (7,))
    predictor._opened.sessions["adapt"].close()  # whatever would run it now fails
    np.testing.assert_array_equal(scores(predictor, (7,)), expected)


def test_the_threshold_follows_adapted_scores(predictor: Predictor) -> None:
    enroll(predictor)
    estimated = predictor.threshold
    assert estimated is not None
    task = predictor.task
    assert isinstance(task, EmbeddingTask)
    open_set: OpenSet = task.open_set
    features = open_set.features()
    assert features is not None
    assert (features.labels, features.images) == (3, 2.0)
    cosines = expected_scores(SHOTS, (1, 2, 3, 4, 5, 6))
    owners = np.array([0, 0, 1, 2, 2, 2])
    own = cosines[np.arange(6), owners]
    cosines[np.arange(6), owners] = -np.inf
    assert features.stranger_mean == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    assert features.recognised == pytest.approx(min(own[:2].max(), own[2], own[3:].max()), abs=1e-5)
    left_out = [
        expected_scores({"apple": (2,), "pear": (3,), "plum": (5, 6)}, (1, 4))[[0, 1], [0, 2]],
        expected_scores({"apple": (1,), "pear": (3,), "plum": (4, 6)}, (2, 5))[[0, 1], [0, 2]],
        expected_scores({"apple": (1, 2), "pear": (3,), "plum": (4, 5)}, (6,))[:, 2],
    ]
    assert features.genuine_median == pytest.approx(np.median(np.concatenate(left_out)), abs=1e-5)
    strangers = [shot(seed) for seed in range(100, 140)]
    predictor.false_accept_rate = 0.1
    info = predictor.calibrate(strangers)
    assert info.threshold is not None
    best = expected_scores(SHOTS, tuple(range(100, 140))).max(axis=1)
    assert np.mean(best >= info.threshold) <= 0.15


def test_a_pipelines_unknowns_are_plain_prototypes_and_can_be_named(predictor: Predictor) -> None:
    task = predictor.task
    assert isinstance(task, EmbeddingTask)
    assert not isinstance(task.with_nothing_enrolled().gallery, AdaptedGallery)
    units = predictor.embed(shot(9))
    with pytest.raises(InputError, match="cannot be the first that are enrolled"):
        predictor.enroll_rows("fig", units)
    enroll(predictor)
    predictor.enroll_rows("fig", units)
    gallery = task.gallery
    length = np.mean([np.linalg.norm(embeddings_of(seeds), axis=1).mean() for seeds in SHOTS.values()])
    np.testing.assert_allclose(gallery.contents()["fig"], units * length, rtol=1e-4)


def test_what_cannot_be_adapted_changes_nothing() -> None:
    def adapt(prototypes: Array) -> Array:
        if len(prototypes) == 3:
            raise InputError("three")
        return prototypes

    gallery = AdaptedGallery(4, adapt)
    gallery.add_embeddings("a", np.float32([[2, 0, 0, 0]]))
    gallery.add_embeddings("b", np.float32([[0, 3, 0, 0]]))
    for embeddings in (np.float32([[0, 0, 1, 0]]), np.zeros((1, 4), np.float32), np.float32([[np.nan, 1, 1, 1]])):
        with pytest.raises(InputError):
            gallery.add_embeddings("c", embeddings)
        with pytest.raises(InputError):
            gallery.replace({"a": embeddings, "b": embeddings, "c": embeddings})
    with pytest.raises(InputError, match=r"takes \(N, 4\), N >= 1"):
        gallery.add_embeddings("c", np.ones((1, 3), np.float32))
    assert gallery.labels == ("a", "b")
    assert {label: rows.tolist() for label, rows in gallery.contents().items()} == {
        "a": [[2, 0, 0, 0]],
        "b": [[0, 3, 0, 0]],
    }
    assert [match.label for match in gallery.search(np.float32([[0.6, 0.8, 0, 0]]), 2)[0]] == ["b", "a"]
    assert len(gallery.genuine_scores()) == 0
    many = {str(number): np.float32([[1, 0, 0, 0]]) for number in range(MAX_LABELS + 1)}
    with pytest.raises(InputError, match=f"{MAX_LABELS + 1} labels; allowed: {MAX_LABELS}, for they are adapted"):
        gallery.replace(many)


def test_verify_holds_the_graph_to_float32(tmp_path: Path, bundle: Path) -> None:
    (check,) = verify_bundle(Bundle(bundle))
    assert check.status == "passed"
    assert [graph.graph for graph in check.graphs] == ["encode", "adapt"]
    path = write_adapted_bundle(tmp_path / "int8.edgevis", [TinyEngine(precision="int8")])
    (check,) = verify_bundle(Bundle(path))
    assert check.status == "passed"
    assert check.graphs[1].max_relative_error < 1e-5


def test_settings_that_a_set_cannot_have(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"adapts at most {MAX_LABELS} labels, which need no index"):
        Predictor(bundle, index_from=10)
    with pytest.raises(SchemaError, match=r"set_of is 'encode/embedding'"):
        write_adapted_bundle(tmp_path / "reid.edgevis", tiny=Tiny(task="reid"))
