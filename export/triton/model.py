"""A bundle behind Triton Inference Server's Python backend: ``export.triton`` puts this file into a model repository.

Input ``image``, one per row: the bytes of an image file (JPEG, PNG, …). Outputs, of which a client asks for what it
needs: ``result``, JSON; ``embedding``, float32, for models with embeddings; ``mask``, a grey PNG of the image's size, 0
being background, for models that give each pixel a label. A request with a picture that cannot be used fails alone, as
the client's fault (HTTP 400). An enrolment file that changes is read again; a damaged one is logged, and the earlier
one stays.

The server's Python needs edgevis, not PyTorch; where it is not installed there, the environment variable
``PYTHONPATH`` names the ``site-packages`` that it is in.
"""

from __future__ import annotations

import json
import os
import site
import sys
import time
from pathlib import Path
from typing import Any

# The backend's interpreter is isolated: it ignores the variable, whose folders are to be looked in first.
_before = len(sys.path)
for _folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    site.addsitedir(_folder)
sys.path[:] = sys.path[_before:] + sys.path[:_before]

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from edgevis import EdgevisError, InputError, Predictor, SourceError
from runtime import tasks
from runtime.images.decode import decode_image

_LOOK_S = 1.0
"""The least time between two looks at the enrolment file."""


class TritonPythonModel:
    """The class that Triton's Python backend loads. It calls ``execute`` with all requests that it batched."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        _use_gpu_of_instance(args)
        os.environ.setdefault("EDGEVIS_MAX_PIXELS", parameters["max_pixels"])
        # A path is relative to the model's folder in the repository, so that both can be moved together.
        bundle = Path(args["model_repository"], parameters["bundle"])
        self._predictor = Predictor(
            bundle,
            backend=parameters["backend"],
            device=parameters["device"],
            precision=parameters["precision"] or None,
        )
        enrolment = parameters.get("enrolment")
        self._enrolled = bool(enrolment) or _takes_no_enrolment(self._predictor)
        self._file = Path(args["model_repository"], enrolment) if enrolment else None
        self._looked, self._loaded = time.monotonic(), _state_of(self._file)
        if self._file is not None:
            self._predictor.load(self._file)
        # Triton counts a model as ready after this: no client waits for what happens at first use.
        self._predictor.warmup(batch_sizes=sorted({1, config["max_batch_size"]}))

    def execute(self, requests: list[Any]) -> list[Any]:
        self._look_for_changes()
        images: list[list[Any]] = []
        failed: dict[int, EdgevisError] = {}
        for index, request in enumerate(requests):
            files = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
            try:
                images.append([decode_image(data, f"image {row}") for row, data in enumerate(files)])
            except EdgevisError as error:  # of one request; the others that it was batched with are answered
                images.append([])
                failed[index] = error
        requested = {name for request in requests for name in request.requested_output_names()}
        every = [image for part in images for image in part]
        try:
            outputs = self._outputs(every, requested) if every else {}
        except EdgevisError as error:
            return [_failure(failed.get(index, error)) for index in range(len(requests))]
        responses, start = [], 0
        for index, (request, part) in enumerate(zip(requests, images, strict=True)):
            rows = slice(start, start + len(part))
            start += len(part)
            responses.append(
                _failure(failed[index])
                if index in failed
                else pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, outputs[name][rows]) for name in request.requested_output_names()]
                )
            )
        return responses

    def _look_for_changes(self) -> None:
        """Load the enrolment file again if it was written since."""
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_S:
            return
        self._looked = now
        state = _state_of(self._file)
        if state in (None, self._loaded):  # one that is being replaced is there again in a moment
            return
        self._loaded = state
        try:
            self._predictor.load(self._file)
        except EdgevisError as error:
            pb_utils.Logger.log_error(f"the enrolment stays as it was: {error}")

    def finalize(self) -> None:
        self._predictor.close()

    def _outputs(self, images: list[Any], requested: set[str]) -> dict[str, Any]:
        responses: dict[str, Any] = {}
        if "embedding" in requested:
            responses["embedding"] = self._predictor.embed(images)
        if not requested & {"result", "mask"}:
            return responses
        # Without an enrolment nothing can be recognised: null.
        results = self._predictor.predict(images) if self._enrolled else [None] * len(images)
        if "result" in requested:
            # A result without objects is empty, and no null.
            texts = [json.dumps(None if result is None else result.to_dict()).encode() for result in results]
            responses["result"] = np.array(texts, np.object_)[:, None]
        if "mask" in requested:
            masks = [b"" if result is None else _png(result) for result in results]
            responses["mask"] = np.array(masks, np.object_)[:, None]
        return responses


def _use_gpu_of_instance(args: dict[str, str]) -> None:
    """Show this process, which is one instance, the one GPU that Triton gave it."""
    if args["model_instance_kind"] != "GPU":
        return
    device = int(args["model_instance_device_id"])
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[device] if device < len(visible) else str(device)


def _state_of(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)


def _takes_no_enrolment(predictor: Predictor) -> bool:
    return tasks.load(predictor.info.task).TRAITS.enrolment == "nothing"


def _png(result: Any) -> bytes:
    return bytes(cv2.imencode(".png", (result.label_map + 1).astype(np.uint8))[1])


def _failure(error: EdgevisError) -> Any:
    """An answer that names the error, as the client's fault if the picture is what is wrong."""
    code = (
        pb_utils.TritonError.INVALID_ARG
        if isinstance(error, (InputError, SourceError))
        else pb_utils.TritonError.INTERNAL
    )
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
