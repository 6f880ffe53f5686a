"""What every task declares, for each task that is discovered."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest

from runtime import tasks
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.errors import SchemaError
from runtime.open_set.decision import DEFAULT_RATE
from runtime.results import Segmentation
from runtime.tasks import EnrolmentKind

POSTPROCESS: dict[str, dict[str, Any]] = {
    "segment": {"labels": ["bright", "dark"]},
    "detect": {"labels": ["person"]},
    "instance_segment": {"labels": ["person"]},
}


@pytest.mark.parametrize("name", tasks.names())
def test_traits(name: str) -> None:
    traits = tasks.load(name).TRAITS
    assert traits.enrolment in get_args(EnrolmentKind)
    for member in ("to_dict", "plot", "cells"):
        assert callable(getattr(traits.result, member))
    assert traits.embedding is None or len(traits.embedding.split("/")) == 2


@pytest.mark.parametrize("name", tasks.names())
def test_settings_are_a_frozen_dataclass(name: str) -> None:
    settings = tasks.load(name).settings_from(POSTPROCESS.get(name, {}))
    assert dataclasses.is_dataclass(settings)
    for field in dataclasses.fields(settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)


@pytest.mark.parametrize("name", tasks.names())
def test_without_the_deciding_output_there_is_no_agreement(name: str) -> None:
    assert tasks.load(name).agreement({}, {}) is None


@pytest.mark.parametrize(("name", "key"), [("reid", "embed/embedding"), ("classify", "encode/embedding")])
def test_embeddings_agree_by_rank_1(name: str, key: str) -> None:
    assert tasks.load(name).TRAITS.embedding == key
    rows = np.eye(4, 8, dtype=np.float32) + np.random.default_rng(0).random((4, 8), np.float32)
    decisions = tasks.load(name).agreement({key: rows}, {key: rows})
    assert decisions is not None
    assert (decisions.metric, decisions.agreement, decisions.count) == ("rank-1 agreement", 1.0, 4)


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [("segment", "segment/logits", (2, 3, 4, 4)), ("few_shot_segment", "query/logits", (2, 1, 2, 4, 4))],
)
def test_masks_agree_by_iou(name: str, key: str, shape: tuple[int, ...]) -> None:
    assert tasks.load(name).TRAITS.result is Segmentation
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    decisions = tasks.load(name).agreement({key: logits}, {key: logits})
    assert decisions is not None
    assert (decisions.metric, decisions.agreement) == ("mask IoU", 1.0)
    # Another graph's outputs alone decide nothing.
    assert tasks.load(name).agreement({key: logits}, {"support/support_mean": logits}) is None


def test_settings_of_a_deployment() -> None:
    graph = Graph("embed", (Preprocess(8, 8).input,), (TensorSpec("embedding", "float32", ("N", 4)),))
    plain = Deployment("reid", (graph,), Preprocess(8, 8))
    assert tasks.settings_of(plain).false_accept_rate == DEFAULT_RATE
    asked = dataclasses.replace(plain, postprocess={"false_accept_rate": 0.01})
    assert tasks.settings_of(asked).false_accept_rate == 0.01
    assert tasks.settings_of(asked).open_set is None
    with pytest.raises(SchemaError, match=r"postprocess\.false_accept_rate is 2"):
        tasks.settings_of(dataclasses.replace(plain, postprocess={"false_accept_rate": 2}))
