"""Published weights through export and ``Predictor`` reach the figures that they are known for."""

from __future__ import annotations

import pytest

from benchmarks import few_shot, reid
from edgevis import Predictor
from edgevis.data import read_class_table

from built import built_bundle
from shared_data import shared_data

# PKU-Reid dev, 20 identities: what these weights reach in code of others, see the data's MANIFEST.
PERSONS = {
    "osnet-x0-25": (("osnet_x0_25_msmt17.safetensors",), 0.881, 0.714),
    "osnet-in-x0-5": (("reid_retail0287", "osnet_in_x0_5_retail0287.safetensors"), 0.963, 0.882),
}


@pytest.mark.parametrize("model", PERSONS)
def test_persons_are_found_as_well_as_is_known(model: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file, rank_1, mean_ap = PERSONS[model]
    weights = shared_data("weights", *file)
    bundle = built_bundle(tmp_path_factory, model, "--checkpoint", str(weights), "--precision", "fp32,int8")
    data = shared_data("reid_pku", "pku_reid_dev.zip")
    query, gallery = (reid.read_split(data, split) for split in ("query", "gallery"))
    found = {scores.encoder: scores for scores in reid.score_bundle(bundle, query, gallery)}
    for engine in ("onnxruntime-fp32", "openvino-fp32"):
        assert found[engine].rank_1 == pytest.approx(rank_1, abs=0.005)
        assert found[engine].mean_ap == pytest.approx(mean_ap, abs=0.005)
    # Within a point; of 160 queries one more, because a search on another processor may end with other layers.
    for engine in ("onnxruntime-int8", "openvino-int8"):
        assert found[engine].rank_1 > found["onnxruntime-fp32"].rank_1 - 0.01 - 1 / 160
        assert found[engine].mean_ap > found["onnxruntime-fp32"].mean_ap - 0.01


def test_mobilenetv2_learns_groceries_from_few_shots(tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = shared_data("weights", "mobilenetv2_100.tf2_ptq_in1k.safetensors")
    data = read_class_table(shared_data("fewshot_grocery", "grocery_dev.zip"))
    bundle = built_bundle(tmp_path_factory, "mobilenetv2", "--checkpoint", str(weights), "--precision", "fp32")
    labels, images = data.labels, [data[index][0] for index in range(len(data))]
    with Predictor(bundle) as predictor:
        embeddings = predictor.embed(images)
        by_row = few_shot.from_embeddings(few_shot.scored_rows(bundle, embeddings))
        by_image = few_shot.from_images(predictor, images)
        few = list(few_shot.episodes(labels, way=5, shot=1, query=10, count=3, seed=7))
        assert [by_row(episode) for episode in few] == [by_image(episode) for episode in few]
    by_embedding = few_shot.from_embeddings(embeddings)  # the protocol knows no score space
    for shot, known, tolerance in ((1, 0.828, 0.015), (5, 0.947, 0.01)):
        drawn = few_shot.episodes(labels, way=5, shot=shot, query=10, count=1000, seed=0)
        measured = few_shot.summary("", "", 5, shot, [by_embedding(episode) for episode in drawn])
        assert measured.accuracy.value == pytest.approx(known, abs=tolerance)
