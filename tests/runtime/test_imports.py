"""What importing edgevis brings, and that every public error is public."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import pytest

import edgevis
import runtime
from runtime import errors

from python_processes import run_python, succeeded

ROOT = Path(str(runtime.__file__)).parent
MODULES = ["runtime", *(module.name for module in pkgutil.walk_packages([str(ROOT)], "runtime."))]
HEAVY = {"torch", "onnxruntime", "openvino", "onnx", "PIL", "matplotlib", "skimage", "safetensors"}
HEAVY |= {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda", "pycuda", "numkong"}

_IMPORTED = """
import json, sys
import edgevis
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

_WITHOUT = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "safetensors", "skimage", "matplotlib", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


def test_importing_edgevis_imports_no_engine_and_no_torch() -> None:
    found = set(json.loads(succeeded(run_python(_IMPORTED))))
    assert not HEAVY & found
    assert {"numpy", "cv2", "runtime"} <= found


def test_every_module_of_the_runtime_imports_where_there_is_no_torch() -> None:
    assert len(MODULES) > 20
    # One process for all, and none with a warning: python -W error.
    assert succeeded(run_python(_WITHOUT, "edgevis", *MODULES)) == f"imported {len(MODULES) + 1}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_the_runtime_imports_an_engine_by_itself(module: str) -> None:
    source = inspect.getsource(importlib.import_module(module))
    at_the_top = re.findall(r"^(?:import|from) ([a-z_0-9]+)", source, re.MULTILINE)
    assert not HEAVY & set(at_the_top)


@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_foreign_runtime_is_named(tmp_path: Path, kind: str) -> None:
    intruder = tmp_path / ("runtime.py" if kind == "module" else "runtime/__init__.py")
    intruder.parent.mkdir(exist_ok=True)
    intruder.write_text("VERSION = 1\n")
    process = run_python("import edgevis", first_on_path=tmp_path)
    assert process.returncode == 1
    assert "ImportError: edgevis needs its own package 'runtime', but Python found another one first" in process.stderr
    assert str(intruder) in process.stderr
    assert "Rename or move that one" in process.stderr


def test_a_runtime_in_the_working_folder_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "runtime.py").write_text("")
    process = run_python("import edgevis", cwd=tmp_path)
    assert process.returncode == 1
    assert str(tmp_path / "runtime.py") in process.stderr


def test_the_public_names() -> None:
    assert set(edgevis.__all__) - set(errors.__all__) == {
        "Classification",
        "Detection",
        "Detections",
        "EnrolmentReport",
        "Finding",
        "Frame",
        "Identification",
        "Info",
        "Instance",
        "InstanceSegmentation",
        "Judgement",
        "Match",
        "Pipeline",
        "PipelineSettings",
        "PipelineStats",
        "Predictor",
        "Segmentation",
        "SourceStats",
        "TrackedObject",
        "__version__",
    }
    assert len(edgevis.__all__) == len(set(edgevis.__all__))
    for name in edgevis.__all__:
        assert getattr(edgevis, name) is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", edgevis.__version__)


def test_a_predictor_starts_without_what_pipelines_need() -> None:
    code = "import sys, edgevis; assert 'runtime.tracking' not in sys.modules; print(edgevis.Pipeline.__name__)"
    assert succeeded(run_python(code)) == "Pipeline"
    with pytest.raises(AttributeError):
        edgevis.pipelines  # noqa: B018


def test_every_error_is_public_and_of_one_tree() -> None:
    found = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert found == set(errors.__all__)
    for name in found:
        error = getattr(edgevis, name)
        assert error is getattr(errors, name)
        assert issubclass(error, edgevis.EdgevisError)
        assert error.__doc__
        assert str(error("what, got, allowed, fix")) == "what, got, allowed, fix"


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+Error)\b(.*)$", str(errors.__doc__), re.MULTILINE)
    assert {name for _, name, _ in drawn} == set(errors.__all__)
    above: dict[int, type] = {}
    for lines, name, text in drawn:
        depth = len(lines) // 4
        error = getattr(errors, name)
        above[depth] = error
        assert error.__bases__[0] is (above[depth - 1] if depth else Exception)
        builtin = re.search(r"\(also an? (\w+)\)", text)
        assert [base.__name__ for base in error.__bases__[1:]] == ([builtin.group(1)] if builtin else [])
