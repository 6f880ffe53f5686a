"""The pipeline on drawn scenes, with real engines: a detector of coloured squares and a tiny Re-ID model."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_persons import ANN, BOB, EVE, SIDE, Camera, identities, image, last, person, write_bundles

from runtime.errors import EdgevisError, InputError, SourceError, UnknownLabelError
from runtime.pipeline import Pipeline
from runtime.predictor import Predictor
from runtime.streams.frame import Frame
from runtime.streams.reader import StreamReader
from runtime.tracking.objects import TrackedObject
from runtime.tracking.settings import PipelineSettings

from bundles import Array, Tiny, write_tiny_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def pipeline(folder: Path) -> Iterator[Pipeline]:
    with Pipeline(folder / "squares.edgevis", folder / "reid.edgevis") as pipeline:
        yield pipeline


def test_unknowns_keep_their_names_wherever_they_come_back(pipeline: Pipeline) -> None:
    camera = Camera()
    first = last(pipeline, camera.show({ANN: (2, 2), BOB: (5, 5)}, 20))
    names = identities(first)
    assert set(names.values()) == {"unknown-1", "unknown-2"}
    assert last(pipeline, camera.show({}, 40)) == ()
    back = last(pipeline, camera.show({BOB: (3, 1), EVE: (6, 4)}, 20))
    found = identities(back)
    assert found[3, 1] == names[5, 5]
    assert found[6, 4] == "unknown-3"
    numbers = {item.identity: item.track for item in (*first, *back)}
    assert len(numbers) == len(set(numbers.values())) == 3  # and their tracks keep their numbers
    assert pipeline.unknowns == ("unknown-1", "unknown-2", "unknown-3")


def test_a_name_is_the_same_before_two_cameras(pipeline: Pipeline) -> None:
    one, two = Camera(0), Camera(1)
    (seen,) = last(pipeline, one.show({ANN: (2, 2)}, 20))
    pairs = zip(one.show({ANN: (2, 2)}, 20), two.show({BOB: (4, 4), ANN: (1, 6)}, 20), strict=True)
    for pair in pairs:
        first, second = pipeline.process(pair)
    assert identities(first) == {(2, 2): seen.identity}
    assert identities(second) == {(1, 6): seen.identity, (4, 4): "unknown-2"}


def test_renaming_enrols_and_is_kept(folder: Path, tmp_path: Path) -> None:
    enrolment = tmp_path / "door.enrolment"
    with Predictor(folder / "reid.edgevis") as predictor:
        predictor.enroll("bob", person(BOB))
        predictor.save(enrolment)
    with Pipeline(folder / "squares.edgevis", folder / "reid.edgevis", enrolment=enrolment) as pipeline:
        camera = Camera()
        found = identities(last(pipeline, camera.show({ANN: (2, 2), BOB: (5, 5)}, 20)))
        assert found == {(2, 2): "unknown-1", (5, 5): "bob"}
        for label in ("unknown", "unknown-2"):
            with pytest.raises(InputError, match=r"is a name of unknowns; .*merge"):
                pipeline.rename("unknown-1", label)
        pipeline.rename("unknown-1", "ann")
        (ann, bob) = sorted(last(pipeline, camera.show({ANN: (2, 2), BOB: (5, 5)})), key=lambda item: item.identity)
        assert (ann.label, bob.label) == ("ann", "bob")
        assert ann.matches[0].label == "ann"
        assert ann.score == ann.matches[0].score
        assert pipeline.unknowns == ()
        assert pipeline.labels == ("bob", "ann")
        with pytest.raises(UnknownLabelError, match="no 'unknown-1'"):
            pipeline.rename("unknown-1", "eve")
    assert stat.S_IMODE(enrolment.stat().st_mode) == 0o600
    with Pipeline(folder / "squares.edgevis", folder / "reid.edgevis", enrolment=enrolment) as pipeline:
        assert identities(last(pipeline, Camera().show({ANN: (4, 2)}, 20))) == {(4, 2): "ann"}


def test_a_rate_is_that_of_the_pipeline_and_not_of_the_file(folder: Path, tmp_path: Path) -> None:
    enrolment = tmp_path / "door.enrolment"
    with Predictor(folder / "reid.edgevis") as predictor:
        predictor.enroll("bob", person(BOB))
        predictor.save(enrolment)
        rate = predictor.false_accept_rate
    bundles = folder / "squares.edgevis", folder / "reid.edgevis"
    with Pipeline(*bundles, enrolment=enrolment, false_accept_rate=0.05) as pipeline:
        last(pipeline, Camera().show({ANN: (2, 2), BOB: (5, 5)}, 20))
        pipeline.rename("unknown-1", "ann")
    with Predictor(folder / "reid.edgevis") as predictor:
        predictor.load(enrolment)
        assert predictor.labels == ("bob", "ann")
        assert predictor.false_accept_rate == rate != 0.05


def test_an_enrolled_label_is_no_name_of_an_unknown(folder: Path, tmp_path: Path) -> None:
    with Predictor(folder / "reid.edgevis") as predictor:
        predictor.enroll("unknown-1", person(BOB))
        with Pipeline(folder / "squares.edgevis", predictor) as pipeline:
            found = identities(last(pipeline, Camera().show({ANN: (2, 2), BOB: (5, 5)}, 20)))
    assert found == {(2, 2): "unknown-2", (5, 5): "unknown-1"}


def test_merging_and_forgetting_change_the_tracks_that_are_there(pipeline: Pipeline) -> None:
    camera = Camera()
    scene = {ANN: (2, 2), BOB: (5, 5)}
    last(pipeline, camera.show(scene, 20))
    pipeline.merge("unknown-1", "unknown-2")
    assert {item.identity for item in last(pipeline, camera.show(scene))} == {"unknown-1"}
    pipeline.forget("unknown-1")
    assert pipeline.unknowns != ("unknown-1",)
    after = {item.identity for item in last(pipeline, camera.show(scene, 20))}
    assert len(after) == 2
    assert "unknown-1" not in after


def test_a_label_of_one_frame_is_one_individual(folder: Path) -> None:
    with Pipeline(folder / "squares.edgevis", folder / "reid.edgevis") as pipeline:
        pipeline_labels = identities(last(pipeline, Camera().show({ANN: (2, 2)}, 20)))
        twins = image({ANN: (2, 2)})
        twins[5 * SIDE : 6 * SIDE, 5 * SIDE : 6 * SIDE] = person(ANN)
        frames = [Frame(twins, 0, 100 + index, 10 + index / 10, 2000 + index / 10) for index in range(20)]
        found = identities(last(pipeline, frames))
        assert found[2, 2] == pipeline_labels[2, 2]
        assert found[5, 5] not in (found[2, 2], "unknown")


def test_crops_are_embedded_when_a_track_needs_it(pipeline: Pipeline) -> None:
    camera = Camera()
    last(pipeline, camera.show({ANN: (2, 2)}, 61))
    # Three at once, then each 15 frames.
    assert pipeline.stats.embedded == 3 + 3
    assert pipeline.stats.tracks == 1
    assert pipeline.stats.frames == 61


def test_a_batch_gives_what_single_frames_give(folder: Path) -> None:
    results = []
    for size in (1, 8):
        with Pipeline(folder / "squares.edgevis", folder / "reid.edgevis") as pipeline:
            frames = Camera().show({ANN: (2, 2), BOB: (5, 5)}, 24)
            found = [objects for at in range(0, 24, size) for objects in pipeline.process(frames[at : at + size])]
            results.append(found)
            assert pipeline.process([]) == []
    assert [identities(objects) for objects in results[0][16:]] == [identities(objects) for objects in results[1][16:]]
    for one, eight in zip(*results, strict=True):
        assert [item.box_xyxy.tolist() for item in one] == [item.box_xyxy.tolist() for item in eight]


def test_what_is_cut_off_gets_a_name_late_and_a_better_one_then(pipeline: Pipeline) -> None:
    camera = Camera()
    (item,) = last(pipeline, camera.show({ANN: (0, 3)}, 5))
    assert item.identity == "unknown"
    assert pipeline.stats.embedded == 0
    (item,) = last(pipeline, camera.show({ANN: (0, 3)}, 15))
    assert item.identity == "unknown-1"


def test_boxes_are_predicted_where_nobody_looks(folder: Path) -> None:
    with Pipeline(folder / "squares.edgevis", identify=False, detect_every=3) as pipeline:
        camera = Camera()
        found = [pipeline.process([frame])[0] for frame in camera.show({ANN: (2, 2)}, 9)]
        assert [len(objects) for objects in found] == [1] * 9
        assert [objects[0].detected for objects in found] == [True, False, False] * 3
        assert {objects[0].identity for objects in found} == {"unknown"}
        with pytest.raises(InputError, match="identify=False"):
            pipeline.rename("unknown-1", "ann")


def test_streams_of_images_and_of_several_sources(pipeline: Pipeline) -> None:
    one = [image({ANN: (2, 2)})] * 12
    two = [image({BOB: (4, 4)})] * 12
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    for frame, objects in pipeline.stream([iter(one), iter(two)], batch=4):
        seen[frame.source] |= {item.identity for item in objects}
    assert {name for names in seen.values() for name in names} - {"unknown"} == {"unknown-1", "unknown-2"}
    assert not (seen[0] & seen[1]) - {"unknown"}
    assert [source.frames for source in pipeline.stats.sources] == [12, 12]
    assert pipeline.stats.unknown_rate == 1.0
    assert set(pipeline.stats.stage_ms) == {"detect", "track", "identify"}


def film(path: Path, frames: int) -> Path:
    """A video in which Ann and Bob walk, and Bob is away in the middle."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (8 * SIDE, 8 * SIDE))
    for index in range(frames):
        picture = np.zeros((8 * SIDE, 8 * SIDE, 3), np.uint8)
        away = frames // 3 < index < frames // 2
        for number, row in ((ANN, 2), (BOB, 5))[: 1 if away else 2]:
            left = SIDE + 2 * index
            picture[row * SIDE : (row + 1) * SIDE, left : left + SIDE] = person(number)
        writer.write(picture)
    writer.release()
    return path


@pytest.mark.parametrize(("batch", "detect_every"), [(1, 1), (4, 1), (1, 3)])
def test_a_stream_gives_what_single_steps_give(folder: Path, tmp_path: Path, batch: int, detect_every: int) -> None:
    """Detection of the next frames by a thread changes nothing."""
    video = film(tmp_path / "hall.avi", 90)

    def told(pairs: Iterable[tuple[Frame, tuple[TrackedObject, ...]]]) -> list[object]:
        return [(frame.index, [item.to_dict() for item in objects]) for frame, objects in pairs]

    bundles = (folder / "squares.edgevis", folder / "reid.edgevis")
    with Pipeline(*bundles, detect_every=detect_every) as pipeline, StreamReader(video, batch=batch) as reader:
        steps = told(pair for frames in reader for pair in zip(frames, pipeline.process(frames), strict=True))
    with Pipeline(*bundles, detect_every=detect_every) as pipeline:
        assert told(pipeline.stream(video, batch=batch)) == steps
        assert pipeline.stats.sources[0].frames == 90
        assert len(pipeline.unknowns) >= 2
    assert [thread for thread in threading.enumerate() if thread.name.startswith("edgevis-stream")] == []


def test_only_the_named_classes_are_tracked(folder: Path) -> None:
    scene = {ANN: (2, 2)}
    for classes, count in ((["red"], 1), (["green"], 0)):
        with Pipeline(folder / "squares.edgevis", folder / "reid.edgevis", classes=classes) as pipeline:
            assert len(last(pipeline, Camera().show(scene, 3))) == count


def test_drawing_leaves_the_frame_alone(pipeline: Pipeline) -> None:
    frame = Camera().show({ANN: (2, 2)})[0]
    before = frame.image.copy()
    objects = pipeline.process([frame])[0]
    picture = pipeline.plot(frame.image, objects)
    assert np.array_equal(frame.image, before)
    assert not np.array_equal(picture, before)
    data = objects[0].to_dict()
    assert data["detection_label"] == "red"
    assert data["box_xyxy"] == [round(float(value), 2) for value in objects[0].box_xyxy]


def test_a_stream_of_a_video_ends_when_another_thread_closes_the_pipeline(folder: Path, tmp_path: Path) -> None:
    video = film(tmp_path / "hall.avi", 40)
    pipeline = Pipeline(folder / "squares.edgevis", folder / "reid.edgevis")
    for number, _ in enumerate(pipeline.stream(video)):
        if number == 3:
            closing = threading.Thread(target=pipeline.close)
            closing.start()
            closing.join(10)
            assert not closing.is_alive()
    assert number == 3


def test_a_stream_ends_when_another_thread_closes_the_pipeline(pipeline: Pipeline) -> None:
    def endless() -> Iterator[Array]:
        while True:
            yield image({ANN: (2, 2)})

    threading.Timer(0.3, pipeline.close).start()
    for _ in pipeline.stream(endless()):
        pass
    assert pipeline.stats.frames > 0
    with pytest.raises(EdgevisError, match="has been closed"):
        pipeline.process(Camera().show({}))
    pipeline.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"detect": "reid.edgevis"}, "'reid' makes no boxes"),
        ({"identify": "squares.edgevis"}, "'detect' has no embeddings"),
        ({"classes": ["blue"]}, "allowed: some of red, green"),
        ({"classes": "red"}, "in a list"),
        ({"detect_every": 0}, "detect_every is 0"),
        ({"identify_every": True}, "identify_every is True"),
        ({"identify": False, "false_accept_rate": 0.1}, "takes no enrolment"),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: dict[str, object], message: str) -> None:
    given = {"detect": "squares.edgevis", "identify": "reid.edgevis", **arguments}
    for name in ("detect", "identify"):
        if isinstance(given[name], str):
            given[name] = folder / given[name]
    with pytest.raises(InputError, match=message):
        Pipeline(**given)


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"first_views": 0}, {"patience_s": -1.0}, {"detection_score": 2.0}, {"max_unknowns": True}):
        with pytest.raises(InputError, match="allowed"):
            PipelineSettings(**wrong)


def test_any_embedding_task_labels_what_is_detected(folder: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "shelf.edgevis", Tiny(task="classify"))
    scene = {ANN: (2, 2), BOB: (5, 5)}
    with Predictor(bundle) as predictor, Pipeline(folder / "squares.edgevis", predictor) as pipeline:
        assert set(identities(last(pipeline, Camera().show(scene, 20))).values()) == {"unknown-1", "unknown-2"}
        with Predictor(folder / "squares.edgevis") as detector:
            apple = image({BOB: (4, 4)})
            predictor.enroll("apple", detector.predict(apple).crops(apple))
        two = image(scene)
        two[6 * SIDE : 7 * SIDE, SIDE : 2 * SIDE] = person(BOB)
        frames = [Frame(two, 0, 100 + index, 10 + index / 10, 2000 + index / 10) for index in range(30)]
        found = identities(last(pipeline, frames))
        assert found[5, 5] == found[6, 1] == "apple"  # a class may be in two places
        assert found[2, 2].startswith("unknown-")


def test_predictors_of_the_caller_stay_open(folder: Path) -> None:
    with Predictor(folder / "squares.edgevis") as detector, Predictor(folder / "reid.edgevis") as reid:
        with Pipeline(detector, reid) as pipeline:
            last(pipeline, Camera().show({ANN: (2, 2)}, 5))
        assert len(detector.predict(image({ANN: (2, 2)}))) == 1
        assert reid.embed(person(ANN)).shape == (1, 8)


def visitor(visit: int) -> Array:
    """A frame with one of a dozen persons of different colours."""
    person = np.zeros((10, 10, 3))
    person[..., :2] = 20 * visit, 8 * (visit * 5 % 12)
    person[..., 2] = 255 * (np.random.default_rng(visit).random((10, 10)) > 0.25)
    row, column = 1 + visit % 6, 1 + (visit * 7) % 6
    frame = np.zeros((8 * SIDE, 8 * SIDE, 3), np.uint8)
    frame[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = np.kron(person, np.ones((4, 4, 1)))
    return frame


def test_a_dimmed_video_raises_the_drift_alarm_and_the_clean_one_does_not(folder: Path) -> None:
    low = dict.fromkeys(("high_score", "new_score", "min_iou", "min_new_iou"), 0.15)  # in the dark, scores are low
    settings = PipelineSettings(tracker_settings=low)
    with Predictor(folder / "squares.edgevis") as detector, Predictor(folder / "reid.edgevis") as reid:
        for visit in range(0, 8, 2):
            frame = visitor(visit)
            reid.enroll(f"person {visit}", detector.predict(frame).crops(frame))
        states = {}
        for gain in (1.0, 0.35):
            frames = ((gain * visitor(visit)).astype(np.uint8) for visit in range(8) for _ in range(32))
            with Pipeline(detector, reid, settings=settings) as pipeline:
                assert pipeline.stats.drift.shift is None
                for _ in pipeline.stream(frames):
                    pass
                states[gain] = pipeline.stats.drift
        assert not states[1.0].alarm, states
        assert states[0.35].alarm, states
        assert states[1.0].shift < 1 < 3 < states[0.35].shift


def test_counts_are_plain_data_before_the_first_frame(pipeline: Pipeline) -> None:
    stream = pipeline.stream([image({})])
    next(stream)
    (source,) = pipeline.stats.to_dict()["sources"]
    assert (source["frames"], source["latency_p50_ms"]) == (1, None)
    assert json.loads(json.dumps(pipeline.stats.to_dict(), allow_nan=False))["frames"] == 1


def test_a_new_stream_ends_the_one_before(pipeline: Pipeline) -> None:
    scene = [image({ANN: (2, 2)})] * 9
    first = pipeline.stream(scene)
    next(first)
    assert len(list(pipeline.stream(scene))) == 9
    assert list(first) == []
    with pytest.raises(SourceError, match=r"there is no file nowhere\.avi"):
        pipeline.stream("nowhere.avi")  # at once


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (image({}), "one of the frames is a ndarray; allowed: edgevis.Frame"),
        (Frame(image({})[..., 0], 0, 4, 0.0, 0.0), r"the image of frame 4 has shape \(320, 320\).*a grey image"),
        (Frame(None, 0, 4, 0.0, 0.0), "the image of frame 4 is None"),  # type: ignore[arg-type]
    ],
)
def test_frames_that_are_none(pipeline: Pipeline, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.process([given])
    list(pipeline.stream([image({})]))
    assert len(pipeline.process([Frame(image({}), 3, 0, 0.0, 0.0)])) == 1  # a source that no stream has


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PipelineSettings(tracker="sort"), "there is no tracker 'sort'; known: bytetrack"),
        (PipelineSettings(tracker_settings={"iou": 0.5}), "has no setting 'iou'; allowed: high_score"),
        ({"first_views": 2}, "settings is a dict; allowed: a PipelineSettings"),
    ],
)
def test_settings_are_checked_before_the_first_frame(folder: Path, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(folder / "squares.edgevis", folder / "reid.edgevis", settings=settings)
