"""``manifest.json``: the content of a bundle, its encoder's identity, and the measurements of its engines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from runtime.bundle.identity import DIGEST, encoder_identity, manifest_digest
from runtime.bundle.migrate import SCHEMA_1, schema_2_from_1
from runtime.bundle.spec import Deployment, Precision
from runtime.common.json_data import from_json, parse_json, shown, to_json
from runtime.errors import IntegrityError, SchemaError

SCHEMA = 2
"""The version of the JSON names that :meth:`Manifest.dumps` writes."""

MAX_MANIFEST_BYTES = 4 << 20
ANSWERS = "answers.npz"
"""The file of a bundle that holds pictures and the model's answers to them, see
:mod:`runtime.verification.answers`."""

MOST_CHANCE = 0.5
"""With a larger :attr:`Decisions.chance` an agreement cannot show that an engine is right."""

MAX_DIFFERENCE = 4.0
"""Right runs of one engine lie closer than this, whatever they round: outputs that point elsewhere differ by 1.4."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and SHA-256 of one file of the bundle, checked before the file is used."""

    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.size_bytes < 0:
            raise SchemaError(f"file: size_bytes is {self.size_bytes!r}, allowed >= 0")
        if not _DIGEST.fullmatch(self.sha256):
            raise SchemaError(f"file: sha256 is {self.sha256!r}, allowed: 64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class GraphParity:
    """The distance of one graph of an engine from the reference model, the worst over all batch sizes and outputs.

    Attributes:
        graph: The graph's name.
        batch_sizes: The batch sizes that were run.
        max_relative_error: ``max |engine - torch| / max |torch|``; this and the cosines are of the elements that did
            not flip.
        min_cosine: The smallest cosine between one row of the engine's output and of the reference's.
        mean_cosine: The mean of these cosines.
        flipped: The share of elements that a rounding error decided otherwise, see
            :attr:`runtime.bundle.spec.Graph.max_flipped`; 0 for a graph without such decisions.
    """

    graph: str
    batch_sizes: tuple[int, ...]
    max_relative_error: float
    min_cosine: float
    mean_cosine: float
    flipped: float = 0.0


@dataclass(frozen=True, slots=True)
class Decisions:
    """The agreement of an engine's decisions with the reference model's.

    Attributes:
        metric: The name of the measure, such as ``"rank-1 agreement"`` or ``"mask IoU"``.
        agreement: The share of equal decisions, or the mean overlap of masks, 0..1.
        count: The number of compared decisions.
        mean_cosine: Mean cosine between the embeddings or support features that the two make of one image; None
            without such.
        chance: The agreement that an engine would reach whose outputs say nothing of the image, 0..1: between images
            that the model hardly tells apart, any decision is as good as another.
        decisive: Whether ``agreement`` alone measures what an engine loses. Otherwise the cosine of its outputs counts,
            too; most of a detector's are of places without an object, where it says nothing.
        interval: Of the accuracy on annotated images, what is kept: the 95 % interval of 1 less what the model has more
            than the engine; None without annotations.
    """

    metric: str
    agreement: float
    count: int
    mean_cosine: float | None = None
    chance: float = 0.0
    decisive: bool = False
    interval: tuple[float, float] | None = None

    @property
    def measurable(self) -> bool:
        """Whether a wrong engine could have failed."""
        return self.chance <= MOST_CHANCE


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The distance of one engine from the reference model, and the machine that it was measured on.

    Attributes:
        passed: Whether the engine held the tolerance of its precision.
        tolerance: The tolerance in words.
        machine: The processor or accelerator it ran on.
        graphs: The distance of each graph.
        decisions: The agreement of decisions; None where the model takes none.
    """

    passed: bool
    tolerance: str
    machine: str
    graphs: tuple[GraphParity, ...]
    decisions: Decisions | None = None


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """How far right runs of an engine lie apart in one output; differences as :mod:`runtime.parity.recorded` defines
    them.

    Attributes:
        output: ``GRAPH/OUTPUT``.
        variation: The largest difference between runs with several thread counts and batch sizes.
        kernels: The difference to an independent run of the graph that the engine is made of.
    """

    output: str
    variation: float
    kernels: float

    def __post_init__(self) -> None:
        for name in ("variation", "kernels"):
            if not 0 <= getattr(self, name) <= MAX_DIFFERENCE:
                raise SchemaError(
                    f"recorded output {self.output!r}: {name} is {getattr(self, name)!r}, allowed 0..{MAX_DIFFERENCE:g}"
                )


@dataclass(frozen=True, slots=True)
class OutputsRecord:
    """The build's record of an engine's own outputs, see :mod:`runtime.parity.recorded`.

    Attributes:
        engine: The engine whose name the arrays have in ``recorded.npz``; engines that are made of the same graphs and
            could not run share them.
        environment: The environment of the build's kernels, see :func:`runtime.common.machine.environment`; empty where
            a graph was run in the engine's place.
        outputs: The measurements of each output.
    """

    engine: str
    environment: Mapping[str, str]
    outputs: tuple[OutputRecord, ...]


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One compiled form of the whole model: one backend, one precision, one file per graph.

    Attributes:
        backend: The file in ``runtime/backends/`` that opens it.
        precision: The arithmetic it runs in.
        device: The kind of device that it is for, and that its parity is measured on.
        files: Graph name to the path of its file inside the bundle.
        latency_ms: Median time of one image through the graph that predicts, where it was built; None if it was not
            run there.
        parity: The engine's measured parity; None when it has not been measured yet.
        graph_parity: For an engine that could not run where it was built: the measured parity of the graph that it is
            made of, run by ONNX Runtime on the processor. It does not measure the engine's own arithmetic.
        shares_enrolments: Whether embeddings of this engine, or of the graph that it is made of where it could not
            run, were measured to be exchangeable with the FP32 model's.
        recorded: What its outputs on the golden inputs were, where its precision rounds; None for FP32, which is held
            to the reference's outputs, and in bundles of before.
    """

    backend: str
    precision: Precision
    device: str
    files: Mapping[str, str]
    latency_ms: float | None = None
    parity: ParityReport | None = None
    graph_parity: ParityReport | None = None
    shares_enrolments: bool = False
    recorded: OutputsRecord | None = None

    @property
    def name(self) -> str:
        """``backend-precision``, unique within a bundle."""
        return f"{self.backend}-{self.precision}"

    @property
    def holds_parity(self) -> bool:
        """Whether parity was measured and is within its tolerance."""
        return self.parity is not None and self.parity.passed

    @property
    def measured_parity(self) -> ParityReport | None:
        """The engine's own parity, or that of its graph where the engine has not been measured."""
        return self.parity or self.graph_parity


@dataclass(frozen=True, slots=True)
class Weights:
    """The origin of the model's parameters.

    Attributes:
        trained: False when the parameters are random; everything that shows the bundle says so loudly.
        source: A file name, or what the shipped weights say of themselves.
        sha256: Digest of all parameters and buffers, whatever file they came in.
    """

    trained: bool
    source: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Int8Search:
    """The result of the INT8 search for one backend.

    Attributes:
        backend: The backend whose graphs these are.
        placement: The rounded tensors: the ``inputs`` of layers, or the ``outputs`` of convolutions too.
        measured_with: The engine that the losses were measured with: the backend itself where the build can run it.
        max_drop: The largest loss that the search was allowed.
        drop: The loss against the float model: the share of changed decisions, or 1 - mean cosine if that is more.
        naive_drop: The loss with every layer in INT8.
        latency_ms: Median time of one image through the graph that predicts; None where it cannot be run.
        naive_latency_ms: The same with every layer in INT8.
        layers: The number of layers that can be INT8.
        float_layers: The layers that were put back to float, as ``GRAPH/NODE``, the most harmful ones first.
        trials: The number of graphs that were measured.
    """

    backend: str
    placement: str
    measured_with: str
    max_drop: float
    drop: float
    naive_drop: float
    latency_ms: float | None
    naive_latency_ms: float | None
    layers: int
    float_layers: tuple[str, ...]
    trials: int

    @property
    def holds(self) -> bool:
        """Whether the drop is at most the allowed one."""
        return self.drop <= self.max_drop


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that a build compiled and measured, whether or not it is in the bundle.

    Attributes:
        engine: The engine's name.
        latency_ms: Median time of one image; None if it was not run.
        drop: The loss against the float model, as in :class:`Int8Search`; None if it was not run.
        verdict: ``fastest``, ``passes``, or why it is out of the question.
        in_bundle: Whether the bundle holds it.
    """

    engine: str
    latency_ms: float | None
    drop: float | None
    verdict: str
    in_bundle: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """The images and the algorithm of the INT8 scales.

    Attributes:
        digest: Digest of the images, the preprocessing, the weights and the algorithm.
        images: The number of images.
        source: The folder or the set's name, without machine paths.
        algorithm: The quantisation algorithm in words.
        excluded_by_rule: The number of layers that a rule keeps in float, see :mod:`calibration.quantize.rules`.
        searches: The result of the search for each backend.
    """

    digest: str
    images: int
    source: str
    algorithm: str
    excluded_by_rule: int = 0
    searches: tuple[Int8Search, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        name: The bundle's name.
        model: The name in ``edgevis.models`` that made it.
        target: The target it was built for.
        deployment: Task, graphs, preprocessing, postprocessing.
        encoder_identity: A digest over weights, preprocessing and graphs, see :mod:`runtime.bundle.identity`.
        weights: The origin of the parameters.
        parameters: The number of parameters.
        engines: The compiled forms.
        files: Every other file of the bundle by its path.
        calibration: The calibration of INT8; None without an INT8 engine.
        candidates: All engines that the build measured, the fastest first; some may not be in the bundle.
        options: The options that the model was built with, where they are not the default ones.
        tools: Versions of the packages that built it.
        machine: The processor it was built on.
        created: Date and time of the build, ISO 8601, UTC.
        digest: Of a manifest that was read: the digest of all other fields, which was found right. Empty of one that
            was not read, or was written before manifests had a digest. What is written gets its own.
    """

    name: str
    model: str
    target: str
    deployment: Deployment
    encoder_identity: str
    weights: Weights
    parameters: int
    engines: tuple[EngineRecord, ...]
    files: Mapping[str, FileRecord]
    calibration: Calibration | None = None
    candidates: tuple[Candidate, ...] = ()
    options: Mapping[str, str | int] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    created: str = ""
    schema: int = SCHEMA
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        names = [engine.name for engine in self.engines]
        if len(names) != len(set(names)):
            raise SchemaError(f"manifest: an engine is listed twice: {names}")
        graph_names = {graph.name for graph in self.deployment.graphs}
        for engine in self.engines:
            if set(engine.files) != graph_names:
                raise SchemaError(
                    f"engine {engine.name!r} has the graphs {sorted(engine.files)}; the model has {sorted(graph_names)}"
                )

    def dumps(self) -> str:
        """The manifest as JSON text with its digest; the only place that writes the digest."""
        data = to_json(self)
        return json.dumps({**data, DIGEST: manifest_digest(data)}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> Manifest:
        """Parse a manifest from JSON text; the previous schema is migrated, see :mod:`runtime.bundle.migrate`.

        The digest and the encoder's identity are checked against the text as it was written.

        Raises:
            SchemaError: Not JSON, an unsupported schema version, an unknown or missing field, a value out of range.
            IntegrityError: The digest, or the encoder's identity, is not that of what the manifest says.
        """
        try:
            data = parse_json(text)
        except SchemaError as error:
            raise SchemaError(f"manifest.json is {error}") from error
        if not isinstance(data, Mapping):
            raise SchemaError(f"manifest.json must hold a JSON object, got {type(data).__name__}")
        manifest = from_json(cls, _of_this_schema(data), "manifest")
        try:
            _check_digest(manifest, data)
            _check_identity(manifest, data)
        except RecursionError as error:  # what could just be read, nested as deep as Python allows
            raise SchemaError("manifest.json is nested too deep") from error
        return manifest


def _of_this_schema(data: Mapping[str, Any]) -> Mapping[str, Any]:
    schema = data.get("schema")
    if type(schema) is int and schema == SCHEMA:
        return data
    if type(schema) is int and schema == SCHEMA_1:
        return schema_2_from_1(data)
    raise SchemaError(
        f"manifest.json has schema {shown(schema)}; this version of edgevis reads {SCHEMA_1} and {SCHEMA}: build the "
        "bundle again with: python -m export.build; or install the edgevis that wrote it"
    )


def _check_digest(manifest: Manifest, data: Mapping[str, Any]) -> None:
    if DIGEST not in data:
        if ANSWERS in manifest.files:  # what writes those also writes the digest
            raise IntegrityError(
                f"manifest.json has lost its field {DIGEST!r}, the digest of all others: copy the bundle again, or "
                "build it again"
            )
        return
    computed = manifest_digest(data)
    if manifest.digest != computed:
        raise IntegrityError(
            "manifest.json has been altered since it was built: copy the bundle again, or build it again; what a build "
            f"decided, such as preprocessing, cannot be edited afterwards. Its field {DIGEST!r} is "
            f"{shown(manifest.digest)}; what it says has {computed}"
        )


def _check_identity(manifest: Manifest, data: Mapping[str, Any]) -> None:
    # As it was written, or as it is read: an earlier version may not have known all fields of today.
    written = encoder_identity(manifest.model, data["deployment"], manifest.weights.sha256)
    read = partial(encoder_identity, manifest.model, manifest.deployment, manifest.weights.sha256)
    if manifest.encoder_identity != written and manifest.encoder_identity != read():
        raise IntegrityError(
            f"manifest.json: encoder_identity is {shown(manifest.encoder_identity)}; model, weights, preprocessing and "
            f"graphs that it names make it {written}: one of them has been altered. Copy the bundle again, or "
            "build it again"
        )
