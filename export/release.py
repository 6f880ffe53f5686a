"""Build the ready bundles that are part of the package: ``python -m export.release``.

Each is built for the CPU from the weights that ship, verified as ``edgevis verify`` does, and put into the folder of
:mod:`runtime.ready`. ``--check`` builds nothing and compares those that are there with the weights that ship.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2

from calibration.data.samples import samples_from_photographs
from export.reference_models import LoadedModel
from export.reporter import Reporter
from runtime import ready
from runtime.bundle.bundle import SUFFIX, Bundle
from runtime.bundle.identity import encoder_identity
from runtime.bundle.spec import Precision, Preprocess
from runtime.bundle.staging import staged_bundle
from runtime.common.command import run_command
from runtime.common.console import add_verbosity, log_to_stderr
from runtime.common.extras import require_extra
from runtime.common.files import scratch_folder
from runtime.common.text import size_text
from runtime.errors import ExportError, InputError, ParityError
from runtime.parity.compare import compare_rows, golden_feeds
from runtime.verification.verify import verify_bundle

MAX_BYTES = 22_000_000
"""What all ready bundles together may weigh: every installation carries them."""

RELEASED: Mapping[str, tuple[Precision, ...]] = {
    # FP32 alone: 0.9 MB for ONNX Runtime and 1.2 MB for OpenVINO. INT8 would add 2.2 MB and is not faster for so small
    # a network: 2.31 against 2.20 ms with OpenVINO, 5.35 against 2.87 with ONNX Runtime (docs/benchmarks.md). BF16
    # would add 1.2 MB for processors that have it, which are few among those beside a camera.
    "osnet-x0-25": ("fp32",),
    # What a pipeline identifies by. BF16 runs OpenVINO's FP32 files, as the detector's does.
    "osnet-in-x0-5": ("fp32", "bf16"),
    # BF16 runs OpenVINO's FP32 files: it adds 0.5 MB of recorded outputs, and takes a quarter less time than FP32 on
    # processors that have it (docs/person-detector.md).
    "person-detector": ("fp32", "bf16"),
}
"""The ready bundles: a model whose weights ship, and its precisions."""

_MAX_ERROR = 1e-4  # sums in another order; FP32 engines may be off by as much


def main(argv: Sequence[str] | None = None) -> int:
    """Build or check the ready bundles; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m export.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="NAME", nargs="*", help=f"of {', '.join(RELEASED)} (default: all)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="another folder than the package's")
    parser.add_argument("--check", action="store_true", help="build nothing; compare with the weights that ship")
    add_verbosity(parser, progress=True)
    arguments = parser.parse_args(argv)
    with log_to_stderr(arguments):
        return run_command(lambda: _run(arguments), interrupted="the bundle that was being built was not written")


def release(model: str, folder: Path, reporter: Reporter) -> Bundle:
    """Build and verify the ready bundle of a model, and write it into ``folder``.

    Raises:
        ParityError: An engine is not what the build measured.
        EdgevisError: The build failed.
    """
    from edgevis import models
    from export.request import BuildRequest
    from export.stages import build_bundle

    declared = models.entry(model)
    if models.shipped_weights(declared) is None:
        raise ExportError(f"no weights of {model} ship, and a ready bundle is made of those")
    with scratch_folder("edgevis-release-") as work:
        # As a user's images, so that only photographs which may be copied go into the bundle.
        images = _write_samples(work / "photographs of scikit-image and Matplotlib", declared.deployment.preprocess)
        request = BuildRequest(declared, work / f"{model}{SUFFIX}", precisions=RELEASED[model], calibration_data=images)
        built = build_bundle(request, reporter)
        failed = [check for check in verify_bundle(built) if check.status != "passed"]
        if failed:
            raise ParityError("; ".join(f"{model}: {check.engine}: {check.reason}" for check in failed))
        with staged_bundle(folder / built.path.name) as staged:
            shutil.copytree(built.path, staged, dirs_exist_ok=True)
    return Bundle(folder / f"{model}{SUFFIX}")


def _write_samples(folder: Path, preprocess: Preprocess) -> Path:
    """Write crops of the photographs that wheels carry, in a folder for each photograph."""
    samples = samples_from_photographs(height=preprocess.height, width=preprocess.width)
    for number, (label, image) in enumerate(zip(samples.labels, samples.images, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number:03}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def check(model: str, folder: Path) -> Bundle:
    """Check that the ready bundle of a model is whole, and of the weights, the declaration and the code that ship.

    Raises:
        BundleError: It is missing or altered.
        ExportError: It is of other weights, of another declaration of the model, or the model computes something else.
    """
    from edgevis import models
    from export.reference_models.torch_module import load_module
    from export.request import BuildRequest
    from export.stages import with_trained_options

    bundle = Bundle(folder / f"{model}{SUFFIX}")
    bundle.verify_files()
    declared = models.entry(model)
    loaded = load_module(declared, with_trained_options(BuildRequest(declared, bundle.path)))
    identity = encoder_identity(declared.name, loaded.deployment, loaded.weights.sha256)
    if bundle.manifest.encoder_identity != identity:
        raise ExportError(
            f"{bundle.path} is of the encoder {bundle.manifest.encoder_identity[:16]}, the weights and the model that "
            f"ship are {identity[:16]}: run python -m export.release {model}"
        )
    built = bundle.manifest.deployment.postprocess
    changed = [name for name, value in loaded.deployment.postprocess.items() if built.get(name) != value]
    changed += _changed_outputs(bundle, loaded)
    if changed:
        what = ", ".join(changed)
        raise ExportError(
            f"{bundle.path} is of an earlier {model}: {what} changed: run python -m export.release {model}"
        )
    return bundle


def _changed_outputs(bundle: Bundle, loaded: LoadedModel) -> list[str]:
    """The outputs of the model on the golden inputs that are not those of when the bundle was built."""
    golden = bundle.golden()
    changed = []
    for graph in loaded.deployment.graphs:
        inputs, expected = golden_feeds(golden, graph)
        outputs = loaded.model.outputs(graph, list(inputs.values()))
        for (name, array), output in zip(expected.items(), outputs, strict=True):
            error, _ = compare_rows(array, output)
            if not error <= _MAX_ERROR:
                changed.append(f"output {graph.name}/{name}")
    return changed


def _run(arguments: argparse.Namespace) -> int:
    require_extra("export", what="a release")
    folder: Path = arguments.output or ready.FOLDER
    unknown = sorted(set(arguments.model) - set(RELEASED))
    if unknown:
        raise InputError(f"no ready bundle is made of {', '.join(unknown)}; known: {', '.join(RELEASED)}")
    reporter = Reporter(sys.stdout, quiet=bool(arguments.quiet))
    for model in arguments.model or RELEASED:
        bundle = check(model, folder) if arguments.check else release(model, folder, reporter)
        reporter.write(f"{bundle.path}: {size_text(bundle.size_bytes)}, digest {bundle.manifest.digest}\n")
    total = sum(Bundle(path).size_bytes for path in folder.glob(f"*{SUFFIX}"))
    if total > MAX_BYTES:
        raise ExportError(
            f"{folder}: the ready bundles have {size_text(total)}; at most {size_text(MAX_BYTES)} are released"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
