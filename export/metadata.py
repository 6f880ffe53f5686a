"""The metadata of a graph file, for Netron and other runtimes: name, version, task, labels, preprocessing.

ONNX files carry it as ``metadata_props``, OpenVINO IR as ``rt_info`` under ``model_info``. It depends on nothing but
the model and edgevis's version, so that two builds write the same bytes.
"""

from __future__ import annotations

import json

from onnx import ModelProto, helper

from edgevis import __version__
from runtime.bundle.spec import Deployment
from runtime.common.json_data import to_json

PRODUCER = "edgevis"
SECTION = "model_info"
"""The section of OpenVINO's ``rt_info`` that its own tools read."""


def describe_graph(model: ModelProto, *, name: str, graph: str, deployment: Deployment) -> None:
    """Write the metadata into an ONNX model, replacing any that it has.

    Args:
        model: One graph; it is changed.
        name: The model's name.
        graph: The graph's name.
        deployment: Task, preprocessing and, where the task has fixed ones, labels; the last two are written as JSON.
    """
    properties = {
        "model_name": name,
        "graph": graph,
        "task": deployment.task,
        "edgevis_version": __version__,
        "preprocess": json.dumps(to_json(deployment.preprocess), sort_keys=True),
    }
    if labels := deployment.postprocess.get("labels"):
        properties["labels"] = json.dumps(list(labels))
    helper.set_model_props(model, properties)
    model.producer_name, model.producer_version = PRODUCER, __version__
    model.doc_string = f"Graph {graph!r} of {name}, task {deployment.task}; exported by edgevis {__version__}."
