"""What happens to the files of a bundle under an open predictor does not reach it: what was hashed is what runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime import backends
from runtime.bundle.bundle import Bundle
from runtime.errors import EngineError, IntegrityError
from runtime.predictor import Predictor

from bundles import Tiny, TinyEngine, needs_openvino, replace_file, tiny_weights, write_tiny_bundle
from python_processes import run_python, succeeded

ENGINE = "engines/onnxruntime-fp32/embed.onnx"

_OVERWRITTEN = """
import sys
from pathlib import Path
import numpy as np
from edgevis import Predictor

bundle, backend, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
with Predictor(bundle, backend=backend) as predictor:
    before = predictor.embed(image)
    for path in (path for path in bundle.rglob("*") if path.is_file()):
        with path.open("r+b") as file:  # in place, as cp and rsync --inplace do
            content = bytearray(file.read())
            file.seek(0)
            if how == "cut":
                file.truncate(0)
            elif how == "zeros":
                file.write(bytes(len(content)))
            else:
                content[len(content) // 3 :: 5] = bytes(len(content[len(content) // 3 :: 5]))
                file.write(content)
    # One image, and for the first time two, for which OpenVINO compiles its model anew.
    assert np.array_equal(predictor.embed(image), before)
    assert np.allclose(predictor.embed([image, image]), before, atol=1e-5)
print("the same")
"""


@pytest.mark.parametrize("how", ["cut", "zeros", "altered"])
@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_an_open_predictor_keeps_what_was_hashed(tmp_path: Path, backend: str, how: str) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny(engines=[TinyEngine(backend)]))
    assert succeeded(run_python(_OVERWRITTEN, path, backend, how)).strip() == "the same"


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_a_rebuild_leaves_open_predictors_alone(tmp_path: Path, backend: str) -> None:
    engines = [TinyEngine(backend)]
    path = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny(engines=engines))
    image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    with Predictor(path, backend=backend) as predictor:
        before = predictor.embed(image)
        write_tiny_bundle(path, Tiny(engines=engines, weights=tiny_weights(5)))
        np.testing.assert_array_equal(predictor.embed(image), before)
        np.testing.assert_allclose(predictor.embed([image, image])[:1], before, atol=1e-5)
    with Predictor(path, backend=backend) as predictor:
        assert not np.allclose(predictor.embed(image), before, atol=1e-2)


def test_what_is_read_is_what_was_hashed(tiny_bundle: Path) -> None:
    bundle = Bundle(tiny_bundle)
    content = (tiny_bundle / ENGINE).read_bytes()
    assert bundle.read(ENGINE) == content
    assert bundle.engine_files(ENGINE).main == content
    (tiny_bundle / ENGINE).write_bytes(content[::-1])
    for read in (bundle.read, bundle.engine_files, bundle.engine_file, bundle.file):
        with pytest.raises(IntegrityError, match="has been altered"):
            read(ENGINE)


@needs_openvino
def test_an_ir_is_xml(tmp_path: Path) -> None:
    # OpenVINO would read an ONNX graph under that name, and its external data from wherever they are.
    path = write_tiny_bundle(tmp_path / "ir.edgevis", Tiny(engines=[TinyEngine("openvino")]))
    replace_file(path, "engines/openvino-fp32/embed.xml", b"\x08\x09 no XML")
    with pytest.raises(EngineError, match="it is no IR: XML is needed"):
        backends.load("openvino").open_engine(
            Bundle(path).engine_files("engines/openvino-fp32/embed.xml"), precision="fp32", device="cpu", threads=1
        )
