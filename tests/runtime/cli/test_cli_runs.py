"""Runs of the command line lose nothing: results come as they are made, inputs stay, odd places are one clear line."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.cli import main
from runtime.enrolment.file import load_enrolment
from runtime.images.picture_files import encode_drawing, is_drawing

from bundles import Tiny, picture, tree, write_tiny_bundle
from python_processes import python_environment

ODD = os.fsdecode(b"caf\xe9.jpg")  # Latin-1: not UTF-8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, two of one name in different folders, and one that is damaged."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.jpg", "b.png", "c.jpg", "e.jpg", "sub/a.jpg")):
        assert cv2.imwrite(str(folder / name), picture(seed, 64, 32))
    (folder / "d.jpg").write_bytes((folder / "c.jpg").read_bytes()[:200])
    return folder


@pytest.fixture
def sound(folder: Path) -> Path:
    """The same without the damaged one."""
    (folder / "d.jpg").unlink()
    return folder


def edgevis(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    python: Sequence[str] = (),
    before: str = "",
    after: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own; ``before`` and ``after`` are what stands around it in a shell."""
    main = "import sys; from edgevis.cli import main; sys.exit(main())"
    command = [sys.executable, *python, "-c", main, *map(os.fspath, map(_path, arguments))]
    if before or after:
        command = ["bash", "-c", f'{before}"$@" {after}', "bash", *command]
    environment = {**python_environment(), **(env or {})}
    return subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)


def _path(value: object) -> str | bytes:
    return value if isinstance(value, bytes) else os.fspath(value) if isinstance(value, Path) else str(value)


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """What standard error says, which must be one error and nothing else."""
    text = done.stderr.decode(errors="surrogateescape")
    assert done.returncode == 1, text
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    return text


# Results as they are made


def test_json_lines_come_one_by_one(tiny_bundle: Path, sound: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from edgevis.cli import main; sys.exit(main())"]
    slow = tmp_path / "many"
    slow.mkdir()
    for number in range(400):
        shutil.copy(sound / "a.jpg", slow / f"{number:03}.jpg")
    process = subprocess.Popen(
        [*command, "predict", tiny_bundle, slow, "--jsonl"], stdout=subprocess.PIPE, env=python_environment(), text=True
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert process.poll() is None  # it goes on
    rest = [json.loads(line) for line in process.stdout]
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert len(rest) == 399
    assert Path(first["image"]) == slow / "000.jpg"


def test_a_bad_picture_is_reported_and_the_others_have_their_results(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_bundle), str(folder)]) == 1
    output = capsys.readouterr()
    rows = [line.split()[0] for line in output.out.splitlines()[2:-2]]
    assert rows == ["a.jpg", "b.png", "c.jpg", "e.jpg", "sub/a.jpg"]
    assert "d.jpg" in output.err.splitlines()[0]
    assert output.err.splitlines()[-1] == (
        "error: 1 of 6 images could not be read or used; the results of the others are complete"
    )


def test_json_is_one_valid_object_with_a_bad_picture_in_it(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_bundle), str(folder), str(folder / "nowhere.jpg"), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["failed"] == 2
    names = [Path(entry["image"]).name for entry in data["results"]]
    assert names == ["a.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg", "a.jpg", "nowhere.jpg"]
    assert ["error" in entry for entry in data["results"]] == [False, False, False, True, False, False, True]
    assert "there is no image file" in data["results"][-1]["error"]


def test_json_lines_name_the_bad_picture(tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tiny_bundle), str(folder), "--jsonl"]) == 1
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("error" in entry) for entry in entries] == [False, False, False, True, False, False]
    assert all("label" in entry or "error" in entry for entry in entries)
    assert main(["predict", str(tiny_bundle), str(folder), "--jsonl", "--json"]) == 1
    assert "give one of them" in capsys.readouterr().err


def test_json_stays_valid_when_the_run_is_stopped(tiny_bundle: Path, sound: Path, tmp_path: Path) -> None:
    """A drawing that cannot be written stops it; the results before, and of that very picture, are there."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
    code = limited + "import sys; from edgevis.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "predict", tiny_bundle, sound, "--json", "--plot", tmp_path / "drawn"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=python_environment(), timeout=60, check=False
    )
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert len(data["results"]) == 1
    assert "File too large" in data["stopped"]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "drawn").iterdir()) == []  # no half of a picture


def test_an_engine_that_gives_nan_is_an_error_and_json_stays_valid(tmp_path: Path, folder: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "nan.edgevis", Tiny(broken="Div"))
    done = edgevis("predict", bundle, folder / "a.jpg")
    assert "are NaN or infinite" in one_line(done)
    assert done.stdout == b""
    done = edgevis("predict", bundle, folder / "a.jpg", "--json")
    assert done.returncode == 1
    assert "are NaN or infinite" in json.loads(done.stdout)["results"][0]["error"]
    done = edgevis("verify", bundle, "--json")
    assert done.returncode == 1
    (check,) = json.loads(done.stdout)["engines"]
    assert check["status"] == "failed"
    assert "NaN" in check["reason"]


def test_memory_does_not_grow_with_the_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    """Each picture of 12 megapixels takes 36 MB; ten of them must take no more than three."""
    code = (
        "import resource, sys; from edgevis.cli import main; status = main();"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr); sys.exit(status)"
    )
    photograph = tmp_path / "photograph.jpg"
    image = cv2.resize(picture(1), (4000, 3000), interpolation=cv2.INTER_NEAREST)
    assert cv2.imwrite(str(photograph), image, [cv2.IMWRITE_JPEG_QUALITY, 50])

    def peak_mb(count: int, *verb: str) -> int:
        folder = tmp_path / f"{count}"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            if not (folder / f"{number}.jpg").exists():
                os.link(photograph, folder / f"{number}.jpg")
        command = [sys.executable, "-c", code, verb[0], tiny_bundle, *verb[1:], folder]
        if verb[0] == "enroll":
            command += ["--enrolment", tmp_path / "x.enrolment"]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=python_environment(), timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stderr.splitlines()[-1])

    for verb in (("predict",), ("enroll", "anna")):
        assert peak_mb(12, *verb) < peak_mb(3, *verb) + 72, verb


# Inputs stay


@pytest.mark.parametrize("route", ["same", "link", "relative", "hard link", "link of the folder"])
def test_drawings_never_take_the_place_of_an_input(
    tiny_bundle: Path, sound: Path, tmp_path: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(sound)
    target = sound
    if route in ("link", "hard link"):
        target = tmp_path / "out"
        target.mkdir()
        if route == "link":
            (target / "a.jpg").symlink_to(sound / "a.jpg")
        else:
            os.link(sound / "a.jpg", target / "a.jpg")
    elif route == "link of the folder":
        target = tmp_path / "link"
        target.symlink_to(sound)
    monkeypatch.chdir(sound)
    shown = "." if route == "relative" else str(target)
    for _ in range(2):
        assert main(["predict", str(tiny_bundle), "." if route == "relative" else str(sound), "--plot", shown]) == 0
        after = tree(sound)
        assert {name: after[name] for name in before} == before
        drawn = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if is_drawing(path))
        assert drawn[:3] == ["a-2.jpg", "b.png.jpg", "c-2.jpg" if target != tmp_path / "out" else "c.jpg"]
        assert len(drawn) == 5


def test_a_drawing_takes_no_foreign_picture_s_place(
    tiny_bundle: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(sound)
    assert main(["predict", str(tiny_bundle), str(sound / "sub" / "a.jpg"), "--plot", str(sound), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["plot"] == str(sound / "a-2.jpg")
    assert {name: content for name, content in tree(sound).items() if name != "a-2.jpg"} == before


def test_a_second_run_does_not_read_what_the_first_drew(
    tiny_bundle: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def images(*more: str) -> list[str]:
        capsys.readouterr()
        assert main(["predict", str(tiny_bundle), *more, "--jsonl"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [Path(json.loads(line)["image"]).relative_to(sound).as_posix() for line in lines]

    five = ["a.jpg", "b.png", "c.jpg", "e.jpg", "sub/a.jpg"]
    assert images(str(sound), "--plot", str(sound / "drawn")) == five
    drawn = tree(sound / "drawn")
    assert images(str(sound), "--plot", str(sound / "drawn")) == five
    assert tree(sound / "drawn") == drawn
    assert images(str(sound)) == five
    assert images(str(sound), "--plot", str(sound)) == five
    done = edgevis("predict", tiny_bundle, *sorted(sound.glob("*.jpg")), "--jsonl")
    assert [Path(json.loads(line)["image"]).name for line in done.stdout.splitlines()] == ["a.jpg", "c.jpg", "e.jpg"]
    assert re.search(rb"warning: .*a-2\.jpg and 3 more left out: edgevis drew it", done.stderr)
    assert images(str(sound / "drawn" / "a.jpg")) == ["drawn/a.jpg"]  # nothing else was named


def test_drawings_of_names_that_differ_in_case_or_suffix_stay_apart(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a file system that ignores case two of these would be one."""
    names = ["A.jpg", "a.jpg", "a.JPG", "a.png", "a.png.jpg", "Ä.jpg", "A\u0308.jpg"]
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate(names):
        (folder / name).write_bytes(
            cv2.imencode(".jpg" if "jpg" in name.lower() else ".png", picture(seed))[1].tobytes()
        )
    assert main(["predict", str(tiny_bundle), str(folder), "--plot", str(tmp_path / "out"), "--json"]) == 0
    plots = [entry["plot"] for entry in json.loads(capsys.readouterr().out)["results"]]
    assert len({plot.casefold() for plot in plots}) == len(names)
    assert all(Path(plot).is_file() for plot in plots)


def test_an_enrolment_file_that_is_an_input_stays(tiny_bundle: Path, sound: Path) -> None:
    before = tree(sound)
    for image, target in (("a.jpg", "a.jpg"), ("a.jpg", "b.png")):
        done = edgevis("enroll", tiny_bundle, "anna", sound / image, "--enrolment", sound / target)
        assert "is a file, but not an enrolment; it is left as it is" in one_line(done)
    assert tree(sound) == before


def test_a_drawing_is_a_picture_that_says_who_drew_it(tmp_path: Path) -> None:
    image = picture(3, 40, 30)
    for suffix, read in ((".png", image), (".png", image[..., 0]), (".jpg", None)):
        data = encode_drawing(read if read is not None else image, suffix)
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        plain = cv2.imencode(suffix, read if read is not None else image)[1]
        np.testing.assert_array_equal(found, cv2.imdecode(plain, cv2.IMREAD_UNCHANGED))
        (tmp_path / f"x{suffix}").write_bytes(data)
        assert is_drawing(tmp_path / f"x{suffix}")
        (tmp_path / f"x{suffix}").write_bytes(plain.tobytes())
        assert not is_drawing(tmp_path / f"x{suffix}")
    assert not is_drawing(tmp_path / "missing.png")


# Enrolling


def test_one_bad_picture_enrolls_nothing_and_all_bad_ones_are_named(tiny_bundle: Path, folder: Path) -> None:
    (folder / "f.jpg").write_bytes(b"")
    path = folder.parent / "x.enrolment"
    text = one_line(edgevis("enroll", tiny_bundle, "anna", folder, "--enrolment", path))
    assert "2 of 7 images cannot be used, so nothing was enrolled" in text
    assert "d.jpg" in text
    assert "f.jpg" in text
    assert "--skip-bad" in text
    assert not path.exists()


def test_bad_pictures_are_skipped_where_that_is_asked_for(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder.parent / "x.enrolment"
    command = ["enroll", str(tiny_bundle), "anna", str(folder), "--enrolment", str(path), "--skip-bad", "--json"]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["added"] == 5
    assert [Path(entry["image"]).name for entry in data["skipped"]] == ["d.jpg"]
    assert len(load_enrolment(path).rows["anna"]) == 5


def test_shells_that_enrol_at_once_lose_nothing(tiny_bundle: Path, sound: Path) -> None:
    path = sound.parent / "door.enrolment"
    code = "import sys; from edgevis.cli import main; sys.exit(main())"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "enroll", tiny_bundle, label, sound / "a.jpg", "--enrolment", path],
            stdout=subprocess.DEVNULL,
            env=python_environment(),
        )
        for label in "abcdef"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    assert sorted(load_enrolment(path).rows) == list("abcdef")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.glob(".*")] == []


# Odd places


def test_names_that_are_not_utf8(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(write_picture(tmp_path / "ok.jpg"), tmp_path / ODD)
    enrolment = tmp_path / os.fsdecode(b"d\xe9.enrolment")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for verb in (
        ("enroll", tiny_bundle, "anna", tmp_path / ODD, "--enrolment", enrolment),
        ("predict", tiny_bundle, tmp_path / ODD, "--enrolment", enrolment),
        ("predict", tiny_bundle, tmp_path / ODD, "--plot", tmp_path / os.fsdecode(b"d\xe9ssin")),
        ("predict", tiny_bundle, tmp_path / ODD, "--jsonl"),
    ):
        done = edgevis(*verb, env=strict)
        assert done.returncode == 0, done.stderr
        assert b"caf" in done.stdout or verb[0] == "enroll"
    assert len(tree(tmp_path / os.fsdecode(b"d\xe9ssin"))) == 1
    done = edgevis("predict", tiny_bundle, tmp_path / ODD, "--json", env=strict)
    assert os.fsencode(json.loads(done.stdout)["results"][0]["image"]) == os.fsencode(tmp_path / ODD)
    done = edgevis("enroll", tiny_bundle, b"Ren\xe9", tmp_path / ODD, "--enrolment", enrolment, env=strict)
    assert "label 'Ren\\udce9' is not allowed" in one_line(done)


def write_picture(path: Path) -> Path:
    assert cv2.imwrite(str(path), picture(1, 64, 32))
    return path


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1:strict"])
def test_a_terminal_without_the_letters(tiny_bundle: Path, sound: Path, encoding: str) -> None:
    path = sound.parent / "x.enrolment"
    env = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "1"}
    done = edgevis("enroll", tiny_bundle, "车站", sound / "a.jpg", "--enrolment", path, env=env)
    assert done.returncode == 0, done.stderr
    done = edgevis("predict", tiny_bundle, sound / "a.jpg", "--enrolment", path, env=env)
    assert done.returncode == 0, done.stderr
    assert b"\\u8f66\\u7ad9" in done.stdout
    assert edgevis("--help", env=env).returncode == edgevis("info", tiny_bundle, env=env).returncode == 0


def test_standard_output_that_takes_nothing(tiny_bundle: Path, sound: Path) -> None:
    path = sound.parent / "x.enrolment"
    enroll = ("enroll", tiny_bundle, "anna", sound / "a.jpg", "--enrolment", path)
    assert "No space left" in one_line(edgevis(*enroll, after="> /dev/full"))
    assert list(load_enrolment(path).rows) == ["anna"]  # and it is kept
    for more in ((), ("--json",), ("--jsonl",)):
        assert "No space left" in one_line(edgevis("predict", tiny_bundle, sound, *more, after="> /dev/full"))
        done = edgevis("predict", tiny_bundle, sound, *more, after=">&-")
        assert "standard output is closed" in one_line(done)
        done = edgevis("predict", tiny_bundle, sound, *more, after="| head -c 1")
        assert b"Traceback" not in done.stderr
    done = edgevis("predict", tiny_bundle, sound / "a.jpg", "--json", after="2>&-")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["results"]) == 1
    done = edgevis("predict", tiny_bundle, sound / "no.jpg", "--json", after="2>&-")
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"] == 1


def test_python_without_docstrings(tiny_bundle: Path, sound: Path) -> None:
    done = edgevis("predict", tiny_bundle, sound, python=["-OO"])
    assert done.returncode == 0, done.stderr
    assert edgevis("--help", python=["-OO"]).returncode == 0


def test_places_that_cannot_be_written_are_found_before_the_work_begins(tiny_bundle: Path, sound: Path) -> None:
    for flag, target in (("--plot", sound / "a.jpg"), ("--plot", sound / "a.jpg" / "x"), ("--plot", "/proc/nowhere")):
        begun = time.monotonic()
        done = edgevis("predict", tiny_bundle, *([sound] * 40), flag, target)
        assert "no pictures can be written into" in one_line(done)
        assert done.stdout == b""
        assert time.monotonic() - begun < 30
    done = edgevis("predict", tiny_bundle, sound, "--masks", sound / "new")
    assert "--masks is for segmentation" in one_line(done)
    assert not (sound / "new").exists()
    for target, message in (
        (sound / "no" / "x.enrolment", "there is no folder"),
        (sound, "Is a directory"),
        (sound / ("x" * 300), "name too long"),
    ):
        assert message in one_line(edgevis("enroll", tiny_bundle, "anna", sound, "--enrolment", target))


def test_a_pipe_for_an_enrolment_is_not_waited_for(tiny_bundle: Path, sound: Path) -> None:
    os.mkfifo(sound.parent / "pipe")
    for verb in (("enroll", tiny_bundle, "anna", sound / "a.jpg"), ("predict", tiny_bundle, sound / "a.jpg")):
        done = edgevis(*verb, "--enrolment", sound.parent / "pipe")
        assert "not a regular file" in one_line(done)


def test_a_working_folder_that_is_gone_and_names_that_are_too_long(tiny_bundle: Path, sound: Path) -> None:
    gone = sound.parent / "gone"
    for verb, status in (
        (("predict", tiny_bundle, sound / "a.jpg"), 0),
        (("predict", tiny_bundle, "a.jpg"), 1),
        (("predict", tiny_bundle, sound / "a.jpg", "--plot", "x"), 1),
        (("enroll", tiny_bundle, "anna", sound / "a.jpg", "--enrolment", "x.enrolment"), 1),
        (("info", "x.edgevis"), 1),
    ):
        gone.mkdir()
        done = edgevis(*verb, before=f"cd {gone} && rmdir {gone} && ")
        assert done.returncode == status, done.stderr
        if status:
            one_line(done)
    for name in ("x" * 300, "x/" * 3000):
        assert "error: " in one_line(edgevis("predict", tiny_bundle, name))
        assert "error: " in one_line(edgevis("info", name))


def test_threads_beyond_reason(tiny_bundle: Path, sound: Path) -> None:
    done = edgevis("predict", tiny_bundle, sound / "a.jpg", "--threads", str(2**40))
    assert "allowed: None or an int >= 1 and <= 1024" in one_line(done)
