"""The notebook's cells run, and print what is stored below them."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from doc_scenery import link_bundles
from locations import ROOT

NOTEBOOK = ROOT / "docs" / "camera.ipynb"


def _code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.xdist_group("documentation")
def test_the_cells_print_what_is_stored(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot as plt

    link_bundles(tmp_path_factory, tmp_path, ["osnet-x0-25"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    drawn = 0
    with mpl.rc_context({"backend": "agg"}):
        for number, cell in enumerate(_code_cells()):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                warnings.simplefilter("default")  # a notebook shows them
                exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)  # noqa: S102 - what is tested
            stored = "".join(line for output in cell["outputs"] for line in output.get("text", []))
            assert printed.getvalue() == stored
            pictures = [output for output in cell["outputs"] if "data" in output]
            assert len(plt.get_fignums()) == len(pictures)
            drawn += len(pictures)
            plt.close("all")
    assert drawn == 1
