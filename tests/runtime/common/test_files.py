"""Files written whole or not at all: modes, owners, links, what killed writers leave, locks between real processes."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from runtime.common.files import abandoned_folders, atomic_write, open_regular, scratch_folder, write_lock, written_file

from python_processes import python_command, python_environment, run_python, succeeded


def write(path: Path, content: bytes = b"new", *, private: bool = False, durable: bool = True) -> None:
    with atomic_write(path, private=private, durable=durable) as file:
        file.write(content)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that has printed a line: it has come to the interesting place."""
    process = subprocess.Popen(
        python_command(code, *arguments), env=python_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_private_file_is_for_its_owner_and_keeps_the_mode_that_it_is_given(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a"
    before = os.umask(umask)
    try:
        write(path, private=True)
        assert mode(path) == 0o600
        for given in (0o640, 0o600, 0o644, 0o400):
            path.chmod(given)
            write(path, private=True)
            assert mode(path) == given
        write(tmp_path / "shared")
        assert mode(tmp_path / "shared") == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_private_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, private=True)
    os.chown(path, 12345, 23456)
    path.chmod(0o640)
    write(path, b"again", private=True)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o640)
    assert path.read_bytes() == b"again"


_AS_ANOTHER = """
import os, sys
from pathlib import Path
from runtime.common.files import atomic_write
os.setgroups([])
os.setgid(4321)
os.setuid(4321)
with atomic_write(Path(sys.argv[1]), private=True) as file:
    file.write(b"theirs")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_what_a_group_might_do_is_not_for_another_group(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() == "root" and not mode(parent) & 0o001:
            parent.chmod(mode(parent) | 0o001)
    path = folder / "a"
    write(path, private=True)
    os.chown(path, 12345, 23456)
    path.chmod(0o660)
    succeeded(run_python(_AS_ANOTHER, path))
    assert path.read_bytes() == b"theirs"
    assert mode(path) == 0o600


def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, private=True)
    try:
        os.setxattr(path, "user.origin", b"lobby")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    write(path, private=True)
    assert os.getxattr(path, "user.origin") == b"lobby"


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "a"
    links = [tmp_path / name for name in ("one", "two")]
    links[0].symlink_to(real)
    links[1].symlink_to(links[0])
    for content, path in ((b"first", links[0]), (b"second", links[1])):  # the first time it leads to nothing
        write(path, content)
        assert [link.is_symlink() for link in links] == [True, True]
        assert real.read_bytes() == content
    assert sorted(item.name for item in tmp_path.iterdir()) == ["one", "real", "two"]
    assert list((tmp_path / "real").iterdir()) == [real]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to(tmp_path / "trip")
    (tmp_path / "trip").symlink_to(tmp_path / "round")
    before = sorted(item.name for item in tmp_path.iterdir())
    for path in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "round", Path("/dev/null"), tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=r"\[Errno"):
            write(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert written_file(tmp_path / "new") == (tmp_path / "new").resolve()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)  # 254 bytes
    write(path)
    write(path, b"again")
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_reading_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, number in ((tmp_path / "pipe", errno.EINVAL), (tmp_path, errno.EISDIR)):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            open_regular(path)
        assert caught.value.errno == number


# What killed writers leave

_WRITER = """
import sys, time
from pathlib import Path
from runtime.common.files import atomic_write
with atomic_write(Path(sys.argv[1]), private=True) as file:
    file.write(bytes(100))
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_leaves_is_swept_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lobby.enrolment"
    dead, living = started(_WRITER, path), started(_WRITER, path)
    killed(dead)
    (tmp_path / ".lobby.enrolment.0123456789abcdef").write_bytes(b"of an earlier version")
    (tmp_path / ".other.enrolment.0123456789abcdef").write_bytes(b"of another file")
    (tmp_path / ".lobby.enrolment.mine").write_bytes(b"somebody's own")
    assert len(list(tmp_path.glob(".*"))) == 5
    write(path)
    left = {item.name for item in tmp_path.glob(".*")}
    assert {".other.enrolment.0123456789abcdef", ".lobby.enrolment.mine"} < left
    assert len(left) == 3
    killed(living)
    write(path)
    assert len(list(tmp_path.glob(".*"))) == 2
    assert path.read_bytes() == b"new"


_WRITE_AGAIN_AND_AGAIN = """
import sys
from pathlib import Path
from runtime.common.files import atomic_write
print("begun", flush=True)
for _ in range(300):
    with atomic_write(Path(sys.argv[1])) as file:
        file.write(sys.argv[2].encode() * 1000)
"""


def test_writers_at_once_do_not_sweep_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writers = [started(_WRITE_AGAIN_AND_AGAIN, path, letter) for letter in "abcd"]
    assert [process.wait(timeout=120) for process in writers] == [0, 0, 0, 0]
    for process in writers:
        process.communicate()
    content = path.read_bytes()
    assert len(content) == 1000
    assert len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [path]


_SCRATCH = """
import sys, time
from pathlib import Path
from runtime.common.files import scratch_folder
with scratch_folder("build.", parent=Path(sys.argv[1])) as folder:
    (folder / "big").write_bytes(bytes(1000))
    print("building", flush=True)
    time.sleep(60)
"""


def test_the_folder_of_a_killed_build_is_swept_by_the_next(tmp_path: Path) -> None:
    dead, living = started(_SCRATCH, tmp_path), started(_SCRATCH, tmp_path)
    killed(dead)
    (tmp_path / "build.mine").mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    with scratch_folder("build.", parent=tmp_path) as folder:
        assert len(list(tmp_path.iterdir())) == 3  # ours, the living one's, and the one of another name
        assert list(folder.iterdir()) == []
    killed(living)
    assert len(list(abandoned_folders("build.", tmp_path))) == 1
    with scratch_folder("build.", parent=tmp_path):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["build.mine"]


_NO_HOME = """
import os, sys
from runtime.common.cache_folder import cache_folder  # while the interpreter's own files may be read
from runtime.errors import UnavailableError
os.setgroups([])
os.setgid(54321)
os.setuid(54321)  # no entry in /etc/passwd
os.environ.pop("HOME", None)
os.environ.pop("EDGEVIS_CACHE", None)
os.environ.pop("XDG_CACHE_HOME", None)
try:
    cache_folder()
except UnavailableError as error:
    print(error)
os.environ["EDGEVIS_CACHE"] = "/srv/edgevis"
print(cache_folder())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_user_without_a_home_folder_is_told_how_to_name_a_cache() -> None:
    told, named = succeeded(run_python(_NO_HOME, cwd=Path("/"))).splitlines()
    assert "no home folder" in told
    assert "EDGEVIS_CACHE" in told
    assert named == "/srv/edgevis"


# Locks

_HOLDER = """
import sys, time
from runtime.common.files import write_lock
with write_lock(sys.argv[1], timeout_s=30):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_keeps_others_out_by_every_name_of_the_file_and_ends_with_its_holder(tmp_path: Path) -> None:
    path, link = tmp_path / "real" / "a", tmp_path / "link"
    path.parent.mkdir()
    link.symlink_to(path)
    holder = started(_HOLDER, link, 60)
    with pytest.raises(TimeoutError, match=r"kept its folder locked for 0\.2 s"), write_lock(path, timeout_s=0.2):
        pass
    with write_lock(tmp_path / "elsewhere", timeout_s=0.2):  # another folder
        pass
    killed(holder)
    with write_lock(path, timeout_s=0.2):
        pass
    assert list(path.parent.iterdir()) == []  # no file is made for it


def test_a_lock_that_is_given_back_in_time_is_had(tmp_path: Path) -> None:
    holder = started(_HOLDER, tmp_path / "a", 0.5)
    begun = time.monotonic()
    with write_lock(tmp_path / "a", timeout_s=30):
        assert time.monotonic() - begun < 20
    holder.communicate()


def test_threads_wait_for_each_other_and_one_may_lock_twice(tmp_path: Path) -> None:
    counts = {"now": 0, "most": 0}

    def work() -> None:
        for _ in range(20):
            with write_lock(tmp_path / "a", timeout_s=30), write_lock(tmp_path / "b", timeout_s=30):
                counts["now"] += 1
                counts["most"] = max(counts["most"], counts["now"])
                time.sleep(0.001)
                counts["now"] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"now": 0, "most": 1}
