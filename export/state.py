"""The state of a build: the request, and the results of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto

from calibration.cache import CalibrationInputs
from calibration.data.samples import SampleSet
from calibration.quantize.config import QuantizationConfig
from calibration.search.calibrate import CalibratedModel
from calibration.search.search import NOT_SEARCHED, SearchedGraphs
from calibration.search.sensitivity import LayerSensitivity
from export.labelled import agreement_on
from export.profiles import Profiles
from export.reference_models import ReferenceModel
from export.request import BuildRequest
from export.targets import Target
from runtime import tasks
from runtime.bundle.manifest import Calibration, Candidate, EngineRecord, Manifest, Weights
from runtime.bundle.spec import Deployment, Precision
from runtime.common.arrays import Array
from runtime.parity.measure import CompareDecisions

EngineKey = tuple[str, Precision]
"""The backend and the precision of an engine."""

Graphs = Mapping[str, ModelProto]
"""Graph name to ONNX model."""


@dataclass(slots=True, eq=False)
class BuildState:
    """The state of a build; stages run in order, and each reads what earlier ones have set.

    Attributes:
        request: The request.
        target: The target that engines are built for.
        precisions: The precisions that are built; INT8 is removed where the images cannot show its loss.
        folder: The staged bundle's; what a stage writes goes there.
        model: The reference model that engines are compared with. Set by ``load``, as are the next four.
        deployment: The model's graphs and preprocessing; ``open_set`` adds its statistics.
        weights: The source and digest of the weights.
        parameters: The number of parameters.
        profiles: Graph name to the shapes that engines are built for; empty where the target has no such range.
        calibration_samples, verification_samples: Images, with masks where a graph takes one. Set by ``samples``.
        float_graphs: The graphs in float32. Set by ``to_onnx``.
        reference: ``GRAPH/TENSOR`` to one row per verification image: inputs, and the model's outputs. Set by
            ``reference``.
        golden: The same of the images that go into the bundle; None where those are the first of ``reference``.
        left_out: Names of engines that are not built, because nothing could be measured of them.
        calibrated: INT8's ranges; None where no INT8 is built. Set by ``calibrate``.
        sensitivity: The loss of each layer that is alone in INT8. Set by ``measure_sensitivity``; None where that was
            not needed.
        search: INT8 graphs for each backend. Set by ``search_int8``.
        calibration: A record of how they were quantised; None where no INT8 is built.
        graphs: The graphs that each engine is compiled from; engines that are compiled from the same share the very
            object. Set by ``search_int8``; ``cast_fp16`` replaces those that compute in float16.
        uncast_graphs: The same before the casts to float16.
        records: The compiled engines. Set by ``compile``.
        engines: Those that are in the bundle, with what was measured of them. Set by ``check_parity``.
        candidates: The outcome for every engine.
        manifest: The bundle's manifest. Set by ``describe``.
    """

    request: BuildRequest
    target: Target
    precisions: tuple[Precision, ...]
    folder: Path
    model: ReferenceModel = field(init=False)
    deployment: Deployment = field(init=False)
    weights: Weights = field(init=False)
    parameters: int = field(init=False)
    profiles: Mapping[str, Profiles] = field(init=False)
    calibration_samples: SampleSet = field(init=False)
    verification_samples: SampleSet = field(init=False)
    float_graphs: Graphs = field(init=False)
    reference: Mapping[str, Array] = field(init=False)
    golden: Mapping[str, Array] | None = None
    left_out: tuple[str, ...] = ()
    calibrated: CalibratedModel | None = None
    sensitivity: tuple[LayerSensitivity, ...] | None = None
    search: SearchedGraphs = NOT_SEARCHED
    calibration: Calibration | None = None
    graphs: dict[EngineKey, Graphs] = field(init=False)
    uncast_graphs: Mapping[EngineKey, Graphs] = field(init=False)
    records: tuple[EngineRecord, ...] = ()
    engines: tuple[EngineRecord, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    manifest: Manifest = field(init=False)

    @property
    def quantization(self) -> QuantizationConfig:
        """The configuration of INT8 graphs."""
        config = self.target.quantization
        return replace(config, method=self.request.calibration or config.method)

    @property
    def max_drop(self) -> float:
        """What INT8 may lose."""
        asked = self.request.max_drop
        return tasks.load(self.deployment.task).TRAITS.max_drop if asked is None else asked

    @property
    def compare_decisions(self) -> CompareDecisions:
        """The comparison of an engine's decisions with the model's: on annotated images by what is annotated."""
        if any(len(item.boxes) for item in self.verification_samples.objects):
            return agreement_on(self.verification_samples, self.deployment)
        return tasks.load(self.deployment.task).agreement

    @property
    def calibration_inputs(self) -> CalibrationInputs:
        """The inputs that INT8's ranges depend on."""
        return CalibrationInputs(
            self.request.name, self.weights.sha256, self.calibration_samples.digest, self.deployment.preprocess
        )

    def graph_paths(self, record: EngineRecord) -> dict[str, Path]:
        """Graph name to the main file of that engine."""
        return {graph: self.folder / file for graph, file in record.files.items()}
