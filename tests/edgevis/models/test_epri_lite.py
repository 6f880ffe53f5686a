"""EPRI-Net on EfficientNet-Lite0: its start, its deployment, and learning from a teacher alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevis import models
from edgevis.models.epri_net import EPRINet
from edgevis.models.unlabelled_recipe import SimilarityDistillationRecipe
from edgevis.training.freeze import freeze, measure_new_statistics
from edgevis.training.similarity import SimilarityDistillationTask
from edgevis.training.teacher import open_teacher
from edgevis.training.warm_start import load_backbone
from runtime.errors import ModelError

from training_data import write_dressed_persons

pytestmark = pytest.mark.torch

OPTIONS = {"backbone": "efficientnet-lite0", "height": 128, "num_identities": 0}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of EfficientNet-Lite0 as they are published: with a classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    model = models.create("efficientnet-lite0", num_classes=3).train()
    model(torch.randn(4, 3, 128, 64))  # batch norms that have seen something
    save_file(model.state_dict(), path)
    return path


def test_the_pyramid_begins_by_changing_little(published: Path) -> None:
    torch.manual_seed(1)
    whole, baseline = (models.create(name, **OPTIONS) for name in ("epri-net", "epri-net-baseline"))
    assert isinstance(whole, EPRINet)
    image = torch.randn(4, 3, 128, 64)
    for model in (whole, baseline):
        load_backbone(model, published)
    assert torch.equal(whole.backbone.conv_stem.weight, load_file(published)["conv_stem.weight"])
    measure_new_statistics(whole, [image])
    with torch.inference_mode():
        ours, theirs = whole.branches(image)[0], baseline.get_submodule("backbone")
        plain = baseline(image)
    assert not list(theirs.classifier.parameters())
    cosines = torch.cosine_similarity(ours, plain)
    assert float(cosines.min()) > 0.98
    assert float(cosines.max()) < 1 - 1e-6


def test_what_deploys() -> None:
    entry = models.entry("epri-net")
    model = models.module_from(entry, {**OPTIONS, "embedding": 24})
    deployment = models.deployment_of(entry, model)
    (graph,) = deployment.graphs
    assert (graph.inputs[0].shape, graph.outputs[0].shape) == (("N", 3, 128, 64), ("N", 24))
    assert deployment.preprocess.mean == models.entry("efficientnet-lite0").deployment.preprocess.mean
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 128, 64)).shape == (2, 24)
    assert not any("neck" in name or name.startswith("classifier") for name, _ in model.named_parameters())
    assert isinstance(model, EPRINet)
    with pytest.raises(ModelError, match="no classifiers"):
        model.logits((torch.zeros(2, 1280), torch.zeros(2, 320)))
    with pytest.raises(ModelError, match="backbone is 'b1'; allowed: efficientnet-b0, efficientnet-lite0"):
        models.create("epri-net", backbone="b1")


def test_a_teachers_embeddings_begin_it(published: Path, tmp_path: Path) -> None:
    """The fit of 16 views: what is learned from there begins near to the teacher, and reaches all that may learn."""
    photos = write_dressed_persons(tmp_path / "ccp.zip")
    entry = models.entry("epri-net")
    recipe = entry.recipes["similarity"].with_values({"batch": 6, "views": 16, "fitted_views": 16, "harder": False})
    assert isinstance(recipe, SimilarityDistillationRecipe)
    student = models.module_from(entry, {**OPTIONS, "embedding": 16})
    load_backbone(student, published)
    deployment = models.deployment_of(entry, student)
    teacher = open_teacher(None, "osnet-x0-25", student=deployment)
    task = SimilarityDistillationTask.read(photos, recipe, deployment, teacher, seed=0)
    criterion, batch = task.criterion(), task.batch(0, 0, 0)
    before = task.loss(student, criterion, batch, 0)
    task.begin(student)
    after = task.loss(student, criterion, batch, 0)
    assert all(float(after[name].detach()) < 0.8 * float(before[name].detach()) for name in ("pairs", "direction"))
    freeze(student, recipe.frozen)
    torch.stack(list(task.loss(student, criterion, batch, 0).values())).sum().backward()
    without = {name for name, p in student.named_parameters() if p.grad is None}
    assert without
    assert all(name.startswith(recipe.frozen) for name in without)
