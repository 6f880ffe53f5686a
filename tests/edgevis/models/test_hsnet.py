"""HSNet and its five maskings against reference values of the official code; see tests/golden/README.md."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from itertools import chain
from typing import get_args

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from onnx import ModelProto, inliner, shape_inference
from torch import Tensor

from edgevis import models
from edgevis.layers import correlation_pyramid
from edgevis.layers.masking import Masking, masked_pyramid
from edgevis.layers.resize import resize
from edgevis.losses import segmentation_loss
from edgevis.models.hsnet import HSNet, HSNetLearner, load_official_learner
from export.onnx import onnx_from_module
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.errors import InputError, ModelError, WeightsError
from runtime.tasks.few_shot_segment import aggregate_votes

from locations import GOLDEN_FOLDER
from support_query_models import shorten_hsnet

# What its fixtures export, one worker exports.
pytestmark = pytest.mark.xdist_group("hsnet-parts")

GOLDEN = GOLDEN_FOLDER
LEVELS = ("l4", "l3", "l2")
STAGES = ("encoder_layer4", "encoder_layer3", "encoder_layer2", "encoder_layer4to3", "encoder_layer3to2")


@cache
def arrays(name: str) -> Mapping[str, Array]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def tensor(name: str, key: str) -> Tensor:
    return torch.from_numpy(arrays(name)[key])


def part(name: str, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor(name, key) for key in arrays(name) if key.startswith(prefix)}


@cache
def learner() -> HSNetLearner:
    model = HSNetLearner((4, 6, 3)).eval()
    load_official_learner(model, part("04_hpn_learner_r50", "sd."))
    return model


@cache
def model_of(masking: Masking) -> HSNet:
    """The tiny backbone of the end-to-end values and the learner, loaded as from an official checkpoint."""
    model = models.create("hsnet", masking=masking, side=257, width=4)
    assert isinstance(model, HSNet)
    state = {f"module.hpn_learner.{key}": value for key, value in part("04_hpn_learner_r50", "sd.").items()}
    state |= {f"module.backbone.{key}": value for key, value in part("06_end_to_end_tiny", "bb.").items()}
    state |= {"module.backbone.fc.weight": torch.zeros(1000, 128), "module.backbone.fc.bias": torch.zeros(1000)}
    load_official_learner(model, state)
    return model


def small(masking: Masking = "hm") -> tuple[HSNet, Deployment]:
    """One block per stage: quick to export."""
    torch.manual_seed(0)
    model = HSNet(backbone="resnet50", masking=masking, side=65, width=4)
    shorten_hsnet(model)
    return model, models.deployment_of(models.entry("hsnet"), model)


def normalised(image: Array) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
    return (torch.from_numpy(image).float() / 255 - mean) / std


def episode(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query image, support images and masks of an end-to-end case."""
    values = arrays("06_end_to_end_tiny")
    return (
        normalised(values[f"{case}.query_u8"]),
        normalised(values[f"{case}.support_u8"]),
        torch.from_numpy(values[f"{case}.mask_u8"]).float(),
    )


def test_parameters() -> None:
    assert models.parameters(HSNetLearner((4, 6, 3))) == 2_573_794
    assert models.parameters(HSNetLearner((4, 23, 3))) == 2_587_394
    for name in ("hsnet", *(f"hsnet-{masking}" for masking in get_args(Masking))):
        assert models.entry(name).parameters == 23_508_032 + 2_573_794


def test_learner_stage_by_stage() -> None:
    """The outputs of all stages; our blocks hold them support-major, (B, S, C, Q)."""
    seen: dict[str, Tensor] = {}
    model, name = learner(), "04_hpn_learner_r50"
    stacks = (model.squeeze4, model.squeeze3, model.squeeze2, model.mix4to3, model.mix3to2)
    hooks = [
        stack.register_forward_hook(lambda _module, _inputs, output, key=key: seen.update({key: output}))
        for key, stack in zip((*STAGES, "decoder1"), (*stacks, model.decoder1), strict=True)
    ]

    def compare(expected: Mapping[str, Tensor]) -> None:
        for key, wanted in expected.items():
            found = seen[key.removesuffix(".chmean")]
            if not key.startswith("decoder"):
                found = found.permute(0, 2, 3, 1)  # (B, C, Q, S)
                found = found.mean(1) if key.endswith("chmean") else found
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=0, atol=5e-5, err_msg=key)

    try:
        with torch.no_grad():
            for case in ("c0", "c1"):
                logits = model(*(tensor(name, f"{case}.corr_{level}") for level in LEVELS))
                np.testing.assert_allclose(logits, tensor(name, f"{case}.logits"), rtol=0, atol=5e-5)
                compare({key: x for key, x in part(name, f"{case}.").items() if key in (*STAGES, "decoder1")})
            maps = [[tensor(name, f"f.{side}{index:02}") for index in range(13)] for side in "qs"]
            logits = model(*correlation_pyramid(maps[0], maps[1], (4, 6, 3)))
            np.testing.assert_allclose(logits, tensor(name, "f.logits"), rtol=0, atol=5e-5)
            compare({key: x for key, x in part(name, "f.").items() if key.startswith("encoder")})
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("masking", ["fm", "hm"])
def test_features_of_support_and_query(masking: Masking) -> None:
    model, values = model_of(masking), part("06_end_to_end_tiny", "a.feat_")
    query, support, mask = episode("a")
    with torch.no_grad():
        found = {
            "query": model.backbone.features(query),
            "support": model.backbone.features(support[:1]),
            masking: masked_pyramid(model.backbone.features, support[:1], mask[:1], masking=masking),
        }
    for key, wanted in values.items():
        kind, _, index = key.partition(".")
        if kind in found:
            maps = list(chain.from_iterable(found[kind]))
            np.testing.assert_allclose(maps[int(index)], wanted, rtol=1e-4, atol=2e-4, err_msg=key)


@pytest.mark.parametrize("masking", ["fm", "hm"])
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_end_to_end(case: str, masking: Masking) -> None:
    """Three sizes through one module: nothing of the first may be kept."""
    model, values = model_of(masking), part("06_end_to_end_tiny", f"{case}.{masking}.")
    query, support, mask = episode(case)
    with torch.no_grad():
        logits = model(query, support[:1], mask[:1])
    np.testing.assert_allclose(logits, values["logits"], rtol=0, atol=2e-4)
    enlarged = resize(logits, (query.shape[2], query.shape[3]))
    decided = ((enlarged[:, 1] - enlarged[:, 0]).abs() >= 1e-3).numpy()
    prediction = aggregate_votes(logits[None].numpy(), (query.shape[2], query.shape[3]))
    assert np.array_equal(prediction[decided], values["pred"].numpy().astype(bool)[decided])
    assert decided.mean() > 0.9


@pytest.mark.parametrize("masking", ["fm", "hm"])
def test_three_shots(masking: Masking) -> None:
    model, values = model_of(masking), part("06_end_to_end_tiny", f"a.{masking}.")
    query, support, mask = episode("a")
    with torch.no_grad():
        logits = model(query.expand(3, -1, -1, -1), support, mask)
        enlarged = resize(logits, (128, 128))
    np.testing.assert_allclose(enlarged, values["shot_logits_up"], rtol=0, atol=2e-4)
    decided = ((enlarged[:, 1] - enlarged[:, 0]).abs() >= 1e-3).all(0, keepdim=True).numpy()
    prediction = aggregate_votes(logits[:, None].numpy(), (128, 128))
    assert np.array_equal(prediction[decided], values["kshot_pred"].numpy().astype(bool)[decided])


def test_the_two_graphs_are_the_whole_forward() -> None:
    """Every query with every shot; a shot's support tensors may be made together or alone."""
    model = model_of("hm")
    query, support, mask = episode("b")
    queries = torch.cat([query, support])
    supports = torch.cat([support, query, support.flip(3)])
    masks = torch.cat([mask, mask.flip(1), mask.flip(2)])
    with torch.no_grad():
        resident = model.support(supports, masks)
        assert [tuple(x.shape) for x in resident] == [(3, 3, 128, 81), (3, 6, 64, 289), (3, 4, 32, 1089)]
        logits = model.query(queries, *resident)
        assert logits.shape == (2, 3, 2, 66, 66)
        for n in range(2):
            for k in range(3):
                alone = model(queries[n : n + 1], supports[k : k + 1], masks[k : k + 1])[0]
                assert torch.allclose(logits[n, k], alone, atol=2e-5)


def test_an_empty_mask_gives_no_nan() -> None:
    query, support, mask = episode("b")
    for masking in ("fm", "hm"):
        with torch.no_grad():
            assert torch.isfinite(model_of(masking)(query, support, mask * 0)).all()  # type: ignore[arg-type]


def test_official_names() -> None:
    """Bare, with the learner's prefix and as the data-parallel wrapper saves them; for a model and for its learner."""
    with (GOLDEN / "04_name_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    state = part("04_hpn_learner_r50", "sd.")
    assert sorted(f"sd.{name}" for name in state) == sorted(row["npz_key"] for row in rows)
    expected = learner().state_dict()
    for column in ("npz_key", "official_name", "checkpoint_name_dataparallel"):
        official = {row[column].removeprefix("sd."): state[row["npz_key"].removeprefix("sd.")] for row in rows}
        whole, alone = small()[0], HSNetLearner((4, 6, 3))
        whole.learner = HSNetLearner((4, 6, 3))
        before = whole.backbone.state_dict()["conv1.weight"].clone()
        for model in (whole, alone):
            load_official_learner(model, official)
        for name, value in expected.items():
            assert torch.equal(alone.state_dict()[name], value)
            assert torch.equal(whole.learner.state_dict()[name], value)
        assert torch.equal(whole.backbone.state_dict()["conv1.weight"], before)


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    state = {f"module.hpn_learner.{name}": value for name, value in part("04_hpn_learner_r50", "sd.").items()}
    model = HSNetLearner((4, 23, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = r"encoder_layer3\.0\.conv1\.weight is \(16, 6, 5, 5\), the model takes \(16, 23, 5, 5\)"
    with pytest.raises(WeightsError, match=message):
        load_official_learner(model, state)
    del state["module.hpn_learner.encoder_layer3to2.7.bias"]
    state["module.hpn_learner.decoder3.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as raised:
        load_official_learner(HSNetLearner((4, 6, 3)), state)
    assert "1 missing: encoder_layer3to2.7.bias (128,)" in str(raised.value)
    assert "1 unexpected: decoder3.weight (1,)" in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    whole = model_of("hm")
    weight = whole.learner.decoder1[0].weight.clone()
    state = {f"hpn_learner.{name}": value + 1 for name, value in part("04_hpn_learner_r50", "sd.").items()}
    with pytest.raises(WeightsError, match=r"missing: backbone\.bn1\.weight"):
        load_official_learner(whole, {**state, "backbone.conv1.weight": torch.zeros(4, 3, 7, 7)})
    assert torch.equal(whole.learner.decoder1[0].weight, weight)


def test_only_the_learner_learns() -> None:
    model, _ = small()
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    torch.manual_seed(0)
    image, mask = torch.randn(2, 3, 65, 65), torch.zeros(2, 65, 65)
    mask[:, 10:40, 20:50] = 1
    segmentation_loss(model(image, image.flip(0), mask.flip(0)), mask).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {f"learner.{name}" for name, _ in model.learner.named_parameters()}


@pytest.fixture(scope="module")
def exported() -> dict[str, ModelProto]:
    model, deployment = small()
    return {graph.name: onnx_from_module(model, graph) for graph in deployment.graphs}


def test_hybrid_masking_is_a_node_of_the_support_graph_alone(exported: dict[str, ModelProto]) -> None:
    kinds = {name: [node.op_type for node in model.graph.node] for name, model in exported.items()}
    assert kinds["support"].count("HybridMask") == 4
    # The backbone stands there once: images and masked images pass it as one batch.
    assert kinds["support"].count("Conv") == 20
    assert "HybridMask" not in kinds["query"]


def test_the_query_knows_of_no_masking() -> None:
    model, _ = small()
    image, mask = torch.randn(1, 3, 65, 65), torch.ones(1, 65, 65)
    with torch.no_grad():
        resident = model.support(image, mask)
        logits = model.query(image, *resident)
        model.masking = "fm"
        assert torch.equal(model.query(image, *resident), logits)
        assert not torch.equal(model.support(image, mask)[0], resident[0])


def test_exported_tensors_stay_small_in_rank(exported: dict[str, ModelProto]) -> None:
    for model in exported.values():
        plain = inliner.inline_local_functions(model)
        assert "Einsum" not in {node.op_type for node in plain.graph.node}
        inferred = shape_inference.infer_shapes(plain, data_prop=True).graph.value_info
        assert max(len(value.type.tensor_type.shape.dim) for value in inferred) <= 5
        known = {value.name for value in (*inferred, *plain.graph.output)}
        assert known == {name for node in plain.graph.node for name in node.output}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_compute_what_pytorch_does(exported: dict[str, ModelProto], engine: str) -> None:
    model, deployment = small()
    torch.manual_seed(1)
    image, mask = torch.randn(3, 3, 65, 65), torch.zeros(3, 65, 65)
    for row in range(3):
        mask[row, 8 * row : 40, 5:60] = 1
    run = {name: runner(engine, onnx) for name, onnx in exported.items()}
    with torch.no_grad():
        resident = [x.numpy() for x in model.support(image, mask)]
        for batch in (1, 3):
            found = run["support"]({"image": image[:batch].numpy(), "mask": mask[:batch].numpy()})
            for x, wanted in zip(found, resident, strict=True):
                close(x, wanted[:batch])
        names = [x.name for x in deployment.graph("query").inputs[1:]]
        for queries, shots in ((1, 1), (2, 1), (1, 3), (3, 2)):
            parts = [x[:shots] for x in resident]
            expected = model.query(image[:queries], *map(torch.from_numpy, parts)).numpy()
            found = run["query"]({"image": image[:queries].numpy(), **dict(zip(names, parts, strict=True))})
            close(found[0], expected)


def runner(engine: str, model: ModelProto):  # type: ignore[no-untyped-def]
    """A function from inputs by name to outputs in order."""
    if engine == "onnxruntime":
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return lambda inputs: session.run(None, inputs)
    core = openvino.Core()
    plain = core.read_model(inliner.inline_local_functions(model).SerializeToString())
    compiled = core.compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: list(compiled(inputs).values())


def close(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


def test_deployment_follows_the_options() -> None:
    """Shapes of both graphs and the picture's size."""
    default = models.entry("hsnet-hm").deployment
    assert [x.shape for x in default.graph("support").outputs] == [
        ("N", 3, 2048, 196),
        ("N", 6, 1024, 729),
        ("N", 4, 512, 2809),
    ]
    assert default.graph("query").outputs[0].shape == ("N", "K", 2, 106, 106)
    model = models.create("hsnet-im", side=129, width=4, backbone="resnet101")
    assert isinstance(model, HSNet)
    assert model.masking == "im"
    made = models.deployment_of(models.entry("hsnet-im"), model)
    assert [x.shape[1:] for x in made.graph("query").inputs] == [
        (3, 129, 129),
        (3, 128, 25),
        (23, 64, 81),
        (4, 32, 289),
    ]
    assert (made.preprocess.height, made.preprocess.color, made.max_batch) == (129, "RGB", 2)


def test_bad_options_and_input() -> None:
    with pytest.raises(ModelError, match="side is 400; allowed: 32 k \\+ 1"):
        models.create("hsnet", side=400, width=4)
    with pytest.raises(ModelError, match="backbone is 'vgg16'; allowed: resnet50, resnet101"):
        models.create("hsnet", backbone="vgg16")
    with pytest.raises(ModelError, match="masking is 'none'; allowed: hm, fm, im, add, reverse"):
        models.create("hsnet", masking="none")
    with pytest.raises(ModelError, match="no option 'masking'"):
        models.create("hsnet-fm", masking="hm")
    model, _ = small()
    image, mask = torch.zeros(1, 3, 65, 65), torch.zeros(1, 65, 65)
    with pytest.raises(InputError, match=r"image is \(1, 3, 64, 64\); allowed: \(N, 3, 65, 65\)"):
        model.support(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64))
    with pytest.raises(InputError, match="mask is"):
        model.support(image, torch.zeros(1, 64, 65))
    with pytest.raises(InputError, match="image is"):
        model.query(torch.zeros(1, 17, 65, 65), *model.support(image, mask))
    four, three, two = model.support(image, mask)
    with pytest.raises(InputError, match=r"support_l4 is \(1, 1, 32, 81\); allowed: \('K', 1, 128, 9\)"):
        model.query(image, two, three, four)
    with pytest.raises(InputError, match=r"support_l3 is \(2, 2, 64, 25\).*one K for all"):
        model.query(image, four, three.repeat(2, 1, 1, 1), two)
    with pytest.raises(InputError, match="2 query images and 1 support images"):
        model(torch.zeros(2, 3, 65, 65), image, mask)
    four, three, two = torch.zeros(1, 3, 2, 2, 2, 2), torch.zeros(1, 6, 3, 3, 3, 3), torch.zeros(1, 4, 5, 5, 5, 5)
    learner()(four, three, two)
    with pytest.raises(InputError, match=r"l3 is \(1, 4, 5, 5, 5, 5\); allowed: \(B, 6, "):
        learner()(four, two, three)
    with pytest.raises(InputError, match="shrink to different ones"):
        learner()(four, three, torch.zeros(1, 4, 5, 5, 70, 70))
