"""Runs Python in an empty home folder and tells whether it wanted a socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from python_processes import python_environment

# A child sets the filter, hands its listener to the parent and becomes the command. The filter stays through exec and
# reaches every process that the command starts; each call waits for the parent, which notes it and refuses it.
_GUARD = """
import ctypes, fcntl, os, platform, select, socket, struct, sys

SOCKET, SECCOMP = {"x86_64": (41, 317), "aarch64": (198, 277)}[platform.machine()]
NOTIFY, ALLOW = 0x7FC00000, 0x7FFF0000  # SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW
RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

def become_the_command(parent):
    steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, SOCKET), (RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    listener = libc.syscall(SECCOMP, 1, 8, ctypes.byref(program))  # SET_MODE_FILTER, FLAG_NEW_LISTENER
    if listener < 0:
        sys.exit(f"the kernel refuses a seccomp filter: {os.strerror(ctypes.get_errno())}")
    socket.send_fds(parent, [b"1"], [listener])
    os.close(listener)
    os.execv(sys.argv[1], sys.argv[1:])

here, there = socket.socketpair()
process = os.fork()
if process == 0:
    here.close()
    become_the_command(there)
there.close()
listeners = socket.recv_fds(here, 1, 1)[1]
families, status = [], None
poll = select.poll()
for listener in listeners:
    poll.register(listener, select.POLLIN)
while listeners and status is None:
    for _, event in poll.poll(50):
        if event & select.POLLIN:
            note = bytearray(80)
            try:
                fcntl.ioctl(listeners[0], RECEIVE, note)
                families.append(struct.unpack_from("Q", note, 32)[0])
                fcntl.ioctl(listeners[0], SEND, struct.pack("QqiI", struct.unpack_from("Q", note)[0], 0, -13, 0))
            except FileNotFoundError:  # the caller has ended
                pass
    ended, found = os.waitpid(process, os.WNOHANG)
    status = found if ended else None
if status is None:
    status = os.waitpid(process, 0)[1]
if families:
    print("SOCKETS of the families", sorted(set(families)), file=sys.stderr)
    sys.exit(99)
sys.exit(os.waitstatus_to_exitcode(status))
"""
SPOKE = 99


def guarded(
    home: Path, *arguments: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty HOME, without what marks a build server; status SPOKE where it wanted a socket."""
    home.mkdir(exist_ok=True)
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    # With a name nobody asks the name service who the user is.
    environment |= {
        "HOME": str(home),
        "LOGNAME": "somebody",
        "PYTHONPATH": python_environment()["PYTHONPATH"],
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _GUARD, sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        env=environment | variables,
        cwd=cwd or home.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def assert_silent(process: subprocess.CompletedProcess[str], home: Path) -> None:
    assert process.returncode != SPOKE, process.stderr
    assert process.returncode == 0, process.stderr
    assert sorted(path.relative_to(home).as_posix() for path in home.rglob("*")) == []
