"""The README and the pages in docs/ show what happens: blocks run as they stand, or a mark says why not."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import pytest

from edgevis import models
from runtime.bundle.bundle import Bundle

import doc_pages
from doc_pages import PAGES, Block, blocks, commands
from doc_scenery import link_bundles, write_scenery
from locations import ROOT

# Extras of pyproject.toml are its keys below this header.
_EXTRAS = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
# Commands of the system that pages name; tests/documentation/test_service.py checks what they start.
_SYSTEM = {"install", "journalctl", "python3", "systemctl", "useradd"}
MARKED = [block for page in PAGES for block in blocks(page) if block.mark == "not run"]
INLINE = sorted({(page, command) for page in PAGES for command in doc_pages.inline_commands(page)})
# Capital words stand for what a reader puts there.
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_|.]*")


@pytest.mark.parametrize("page", PAGES)
def test_each_block_runs_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        if block.mark == "not run":
            assert block.language in {"python", "sh"}, block.where
            assert block.reason, f"{block.where}: no reason"
        elif block.mark == "tested by":
            assert Path(page).name in (ROOT / block.reason).read_text(), block.where
        elif block.language in {"python", "sh"}:
            assert block.mark in {"", "continues"}, f"{block.where}: what runs needs no mark"
        else:
            assert block.mark == "shows", f"{block.where}: run it, or mark what it shows"
            assert block.reason, f"{block.where}: say what it shows"


@pytest.fixture(scope="session")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenery(tmp_path_factory.mktemp("documentation") / "scenery")


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))])
@pytest.mark.xdist_group("documentation")
def test_the_blocks_of_a_page_run(
    page: str,
    scenery: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(scenery, tmp_path / "folder"))
    code = "".join(block.code for block in blocks(page) if block.runs)
    link_bundles(tmp_path_factory, folder, sorted(set(re.findall(r"bundles/([\w-]+)\.edgevis", code))))
    monkeypatch.chdir(folder)

    def read() -> str:
        captured = capfd.readouterr()
        return captured.out + captured.err

    printed = doc_pages.run_page(page, read)
    if check := CHECKS.get(page):
        check(folder, [printed[line] for line in sorted(printed)])


def _check_readme(folder: Path, printed: list[str]) -> None:
    lines = printed[0].splitlines()
    assert len(lines) == 4, "one line for each frame"
    assert all(line.startswith("bob ") for line in lines), lines
    assert (folder / "door.enrolment").is_file()
    assert cv2.imread(str(folder / "last.jpg")) is not None
    assert len(list((folder / "drawn").iterdir())) == 4


def _check_few_shot_segmentation(folder: Path, printed: list[str]) -> None:
    """The weights are random: what it prints and writes, not what it finds."""
    desk = cv2.imread(str(folder / "desk.jpg"))
    drawn = cv2.imread(str(folder / "mug-on-desk.jpg"))
    assert desk is not None
    assert drawn is not None
    assert drawn.shape == desk.shape
    assert f"of the picture {desk.shape[:2]}" in printed[0]
    assert len(list((folder / "masks").iterdir())) == 1


def _check_reid(folder: Path, printed: list[str]) -> None:
    assert "bob [('bob'" in printed[0]
    assert "(2, 512)" in printed[0]
    answers = [json.loads(line) for line in printed[1].splitlines() if line.startswith("{")]
    assert len(answers) == 4


def _check_bundle(folder: Path, printed: list[str]) -> None:
    manifest = Bundle(folder / "bundles" / "osnet-x0-25.edgevis").manifest
    assert any(f"reid {manifest.digest[:8]}" in text for text in printed)
    layout = next(block.code for block in blocks("docs/bundle.md") if block.mark == "shows")
    described = set(re.findall(r"^  (\S+)", layout, re.MULTILINE))
    assert {*manifest.files, "manifest.json"} - {"graphs/embed.onnx"} <= described


CHECKS: Mapping[str, Callable[[Path, list[str]], None]] = {
    "README.md": _check_readme,
    "docs/bundle.md": _check_bundle,
    "docs/tasks/few-shot-segmentation.md": _check_few_shot_segmentation,
    "docs/tasks/reid.md": _check_reid,
}


@pytest.mark.parametrize("block", [block for block in MARKED if block.language == "python"], ids=lambda b: b.where)
def test_python_that_is_not_run_compiles_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code, block.page)):
        if isinstance(node, ast.Import):
            assert [name.name for name in node.names if importlib.util.find_spec(name.name) is None] == [], block.where
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert missing == [], f"{block.where}: {node.module} has no {missing}"


@pytest.mark.parametrize(
    ("where", "command"),
    [(block.where, line) for block in MARKED if block.language == "sh" for line in commands(block.code)],
)
def test_a_command_that_is_not_run_has_the_right_arguments(where: str, command: str) -> None:
    _check_command(where, command, mention=False)


@pytest.mark.parametrize(("page", "command"), INLINE)
def test_a_command_in_the_text_has_the_right_arguments(page: str, command: str) -> None:
    _check_command(page, command, mention=True)


def _check_command(where: str, command: str, *, mention: bool) -> None:
    name, *arguments = doc_pages.words(command)
    if name == "sudo":
        _, _, name, *arguments = arguments  # -u USER COMMAND
    if "/bin/" in name:  # of an environment that the reader makes
        _check_command(where, shlex.join([name.rpartition("/")[2], *arguments]), mention=mention)
    elif name in _SYSTEM:
        assert name != "install" or (ROOT / arguments[-2]).is_file(), where
    elif name == "docker":
        _check_docker(where, arguments)
    elif name == "make":
        plan = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert plan.returncode == 0, plan.stderr
    elif name == "pip":
        _check_pip(arguments)
    elif name == ".ci/run":
        assert (ROOT / ".ci" / "run").is_file()
    elif arguments[:2] == ["-m", "pytest"]:
        assert [file for file in arguments[2:] if not (ROOT / file).is_file()] == [], where
    else:
        _check_values(doc_pages.parsed(command, mention=mention))


def _check_docker(where: str, arguments: list[str]) -> None:
    """The image's file exists; what its command is given is what edgevis takes."""
    if arguments[0] == "build":
        assert (ROOT / arguments[arguments.index("--file") + 1]).is_file(), where
    else:
        given = arguments[arguments.index("edgevis:cpu") + 1 :]
        _check_command(where, shlex.join(["edgevis", *given]), mention=False)


def _check_pip(arguments: list[str]) -> None:
    assert arguments[0] in {"install", "uninstall"}
    for given in re.findall(r"^(?:\.|edgevis)\[([\w,-]+)\]$", "\n".join(arguments), re.MULTILINE):
        for extra in given.split(","):
            assert re.search(rf"^{extra} = ", _EXTRAS, re.MULTILINE), f"no extra {extra!r}"


def _check_values(arguments: object) -> None:
    """Models, their options and targets exist; the parser knows only that they are words."""
    values = vars(arguments)
    model = values.get("model")
    if isinstance(model, str) and not _PLACEHOLDER.fullmatch(model):
        entry = models.entry(model)
        if options := values.get("option"):
            models.module_from(entry, dict(options))
    target = values.get("target")
    if isinstance(target, str) and not _PLACEHOLDER.fullmatch(target):
        assert (ROOT / "export" / "targets" / f"{target}.py").is_file()


def test_the_readme_is_short_and_its_example_too() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 140
    example = next(block.code for block in blocks("README.md") if "pipeline.stream" in block.code)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12


def test_the_parameters_are_those_that_the_benchmark_counts() -> None:
    from benchmarks import parameters

    names = [name for name in models.names() if name not in parameters.ALIASES]
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for line in parameters.markdown(parameters.counted(names)).splitlines():
        assert line in page


def test_the_tree_of_errors_is_the_one_at_the_top_of_the_file() -> None:
    tree = next(block.code for block in blocks("docs/errors.md") if block.mark == "shows")
    source = (ROOT / "runtime" / "errors.py").read_text()
    assert all(line.strip() in source for line in tree.splitlines())
    assert tree.count("Error") >= 20


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "SECURITY.md"])
def test_every_link_leads_to_a_file(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []
    if page == "README.md":
        assert "docs/demo.jpg" in targets


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_is_named_exists(page: str) -> None:
    for module in set(re.findall(r"python -m ([a-z_.]+)", (ROOT / page).read_text())):
        path = ROOT / Path(*module.split("."))
        third_party = module in {"pytest"}
        assert third_party or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
