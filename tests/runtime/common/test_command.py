"""Commands that are terminated: what they staged is removed, and the exit status is the shell's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.common.command import run_command
from runtime.errors import InputError

_STAGING = """
import os, sys, time
from pathlib import Path
from runtime.common.command import run_command
from runtime.common.files import atomic_write, scratch_folder

def work():
    folder = Path(sys.argv[1])
    with scratch_folder(".work.", parent=folder) as staged, atomic_write(folder / "result") as file:
        (staged / "part").write_bytes(b"x")
        file.write(b"half")
        if sys.argv[2:] == ["fork"]:
            child = os.fork()
            if child == 0:
                print("forked", os.getpid(), flush=True)
                time.sleep(60)
            os.waitpid(child, 0)
            assert (staged / "part").exists(), "a child removed what its parent staged"
        print("staged", flush=True)
        time.sleep(60)

sys.exit(run_command(work, interrupted="nothing was written"))
"""


def staging(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # As from a terminal: what a shell starts in the background inherits that SIGINT is ignored, and nohup's SIGHUP.
    listening = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    )
    command = [sys.executable, "-c", listening + _STAGING, str(folder), *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "interrupted: nothing was written"),
        (signal.SIGTERM, 143, "terminated: nothing was written"),
        (signal.SIGHUP, 129, "terminated: nothing was written"),
    ],
)
def test_a_signal_sweeps(tmp_path: Path, number: int, status: int, said: str) -> None:
    with staging(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        if number != signal.SIGINT:
            process.send_signal(number)  # as timeout(1) does: to the process, and to its group
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.strip() == said
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_leaves_what_its_parent_staged(tmp_path: Path) -> None:
    with staging(tmp_path, "fork") as process:
        assert process.stdout is not None
        said, child = process.stdout.readline().split()
        assert said == "forked"
        os.kill(int(child), signal.SIGTERM)
        assert process.stdout.readline() == "staged\n"
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


_HOLDING = """
import os, sys
from pathlib import Path
from runtime.common.files import scratch_folder, write_lock

folder = Path(sys.argv[1])
reading, writing = os.pipe()
told, tell = os.pipe()
with scratch_folder(".work.", parent=folder), write_lock(folder / "x", timeout_s=0):
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.write(tell, b"x")
        os.read(reading, 1)  # until the parent closes its end
        os._exit(0)
    os.read(told, 1)  # the child runs
with write_lock(folder / "x", timeout_s=0):
    pass
os.close(writing)
os.waitpid(child, 0)
"""


def test_a_lock_ends_with_its_holder_and_not_with_its_children(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", _HOLDING, str(tmp_path)], env=env, timeout=60, check=True)


_HANDLERS = """
import os, signal, threading
from runtime.common.command import Terminated, run_command, unwinding_signals

assert run_command(lambda: 3) == 3
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
with unwinding_signals():
    os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
try:
    with unwinding_signals():
        os.kill(os.getpid(), signal.SIGTERM)
except Terminated as error:
    assert error.number == signal.SIGTERM
else:
    raise AssertionError("not terminated")
statuses = []
thread = threading.Thread(target=lambda: statuses.append(run_command(lambda: 4)))
thread.start()
thread.join()
assert statuses == [4]
"""


def test_handlers_are_put_back_and_others_are_left_alone() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", _HANDLERS], env=env, timeout=60, check=True)


_FINALISER = """
import os, signal, sys, time
from runtime.common.command import run_command

class Slow:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)  # the handler raises here, and Python drops the exception

def work():
    def nested():
        slow = Slow()
        del slow
        time.sleep(30)
        return 0
    return run_command(nested)

sys.exit(run_command(work))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_within_a_finaliser_is_not_lost(number: int, status: int) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _FINALISER, str(int(number))]
    done = subprocess.run(command, env=env, timeout=20, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")


def test_errors_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        raise error

    for error, line in (
        (InputError("a is 1; allowed: 2"), "error: a is 1; allowed: 2"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (MemoryError(), "error: out of memory: give smaller or fewer images"),
    ):
        assert run_command(lambda error=error: fails(error)) == 1  # type: ignore[misc]
        assert capsys.readouterr().err.splitlines() == [line]
    assert run_command(lambda: fails(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""
