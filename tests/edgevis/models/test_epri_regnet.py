"""EPRI-Net on a RegNet: its maps, its widths, its start, and its graph."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from edgevis import models
from edgevis.models.epri_net import EPRINet
from export.onnx import onnx_from_module

pytestmark = pytest.mark.torch

OPTIONS = {"backbone": "regnetx_002", "height": 128}


def test_maps_are_of_one_size_and_wide_as_the_stages() -> None:
    model = models.create("epri-net", **OPTIONS, num_identities=5)
    assert isinstance(model, EPRINet)
    image = torch.randn(2, 3, 128, 64)
    with torch.inference_mode():
        levels, branches = model.levels(image), model.branches(image)
        assert [tuple(x.shape) for x in levels] == [(2, 368, 8, 4), (2, 368, 8, 4), (2, 152, 8, 4)]
        assert not torch.equal(levels[0], levels[1])
        assert [tuple(x.shape) for x in branches] == [(2, 368), (2, 320)]
        assert [tuple(x.shape) for x in model.logits(branches)] == [(2, 5), (2, 5)]
        striped = models.create("epri-net-fpb", **OPTIONS, num_identities=5)
        assert [tuple(x.shape) for x in striped.branches(image)] == [(2, 368), *[(2, 320)] * 3]  # type: ignore[operator]
        baseline = models.create("epri-net-baseline", **OPTIONS, num_identities=0)
        baseline.load_state_dict(model.state_dict(), strict=False)
        # The last stage's stride is 1: the backbone is otherwise the published one, and attention begins as nothing.
        torch.testing.assert_close(baseline(image), model.backbone(image))
        cosines = torch.cosine_similarity(branches[0], baseline(image))
    assert float(cosines.min()) > 0.95
    plain = models.create("epri-net-baseline", backbone="regnetx_004", num_identities=0)
    assert models.parameters(plain) == 4_772_512


def test_attention_sees_the_third_stage() -> None:
    model = models.create("epri-net-pam", **OPTIONS, num_identities=0)
    assert isinstance(model, EPRINet)
    image = torch.randn(1, 3, 128, 64)
    with torch.inference_mode():
        before = model.levels(image)
        assert model.attention is not None
        model.attention.gamma.fill_(1.0)
        after = model.levels(image)
    assert all(not torch.allclose(one, other) for one, other in zip(before, after, strict=True))


def test_the_graph_computes_the_same() -> None:
    entry = models.entry("epri-net")
    model = models.module_from(entry, {**OPTIONS, "num_identities": 0, "embedding": 16})
    (graph,) = models.deployment_of(entry, model).graphs
    assert graph.outputs[0].shape == ("N", 16)
    session = onnxruntime.InferenceSession(onnx_from_module(model, graph).SerializeToString())
    image = torch.randn(3, 3, 128, 64)
    with torch.inference_mode():
        expected = model(image)
    (found,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
