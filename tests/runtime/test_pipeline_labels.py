"""Labels of a pipeline before one camera, and the threshold measured there, on drawn scenes with real engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_persons import ANN, BOB, EVE, Camera, identities, image, last, person, write_bundles

from runtime.errors import InputError
from runtime.pipeline import Pipeline
from runtime.predictor import Predictor
from runtime.tracking.settings import PipelineSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize(("margin", "after"), [(0.15, "unknown-1"), (2.0, "ann")])
def test_a_label_before_a_camera_is_one_individual(folder: Path, margin: float, after: str) -> None:
    with Predictor(folder / "reid.edgevis") as predictor:
        predictor.enroll("ann", person(ANN))
        predictor.threshold = -1.0  # everybody is like enough
        settings = PipelineSettings(holder_margin=margin)
        with Pipeline(folder / "squares.edgevis", predictor, settings=settings) as pipeline:
            camera = Camera()
            (ann,) = last(pipeline, camera.show({ANN: (2, 2)}, 10))
            assert ann.label == "ann"
            assert last(pipeline, camera.show({}, 40)) == ()
            (bob,) = last(pipeline, camera.show({BOB: (5, 5)}, 10))
            assert bob.identity == after
            assert bob.track != ann.track  # also where both have the label: they do not look alike
            assert last(pipeline, camera.show({}, 40)) == ()
            assert [item.track for item in last(pipeline, camera.show({ANN: (2, 2)}, 10))] == [ann.track]
            assert identities(last(pipeline, Camera(1).show({BOB: (5, 5)}, 10))) == {(5, 5): "ann"}


def test_the_threshold_is_measured_on_whom_a_source_shows(folder: Path) -> None:
    with Predictor(folder / "reid.edgevis") as predictor:
        predictor.enroll("ann", person(ANN))
        with Pipeline(folder / "squares.edgevis", predictor) as pipeline:
            both = [image({BOB: (2, 2), EVE: (5, 5)})] * 60
            found = pipeline.calibrate(both)
            assert (found.calibrated, found.strangers) == (True, 2 * 12)
            with pytest.raises(InputError, match=r"no track 9 to leave out; the tracks of this source: 3, 4$"):
                pipeline.calibrate(both, without=[9])
            assert pipeline.calibrate(both * 2, without=[5]).strangers == 24
            with pytest.raises(InputError, match="4 images of strangers; at least 20 are needed"):
                pipeline.calibrate(both[:9])
            with pytest.raises(InputError, match="seconds is 0"):
                pipeline.calibrate(both, seconds=0.0)
            assert predictor.info.open_set is not None
            assert predictor.info.open_set.strangers == 24  # as it was
            with_ann = [image({ANN: (2, 2), EVE: (5, 5)})] * 60
            assert "12 of them score as high as the images of a label do" in pipeline.calibrate(with_ann).note
            predictor.enroll("ann", [person(ANN)[:, :38], person(ANN)[2:]])
            assert "is somebody enrolled among them?" in pipeline.calibrate(with_ann).note
            assert "is somebody enrolled among them?" not in pipeline.calibrate(both).note
    with (
        Pipeline(folder / "squares.edgevis", identify=False) as pipeline,
        pytest.raises(InputError, match="identities"),
    ):
        pipeline.calibrate(both)
