"""A Triton Inference Server on this machine: the one that is installed, or the wheel's, without network access."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from runtime.common.closing import Closing
from runtime.errors import InputError, UnavailableError

VARIABLE = "EDGEVIS_TRITON_PYTHONPATH"
"""The environment variable that names the folder of nvidia-pytriton and NumPy 1; ``make test`` sets it."""

_INSTALLED = Path("/opt/tritonserver/backends")
_START_S = 45.0


class TritonServer(Closing):
    """A server process on a model repository; a context manager that ends it.

    Args:
        repository: The folder that ``python -m export.triton`` wrote.
        log: The file of what it prints; it can be read while the server runs.
        start_s: How long it may take until every model is ready, in seconds.

    Raises:
        UnavailableError: No server is installed, or it did not start: the message has the end of its log.
        InputError: :data:`VARIABLE` names a folder without nvidia-pytriton.
    """

    def __init__(self, repository: Path, log: Path, *, start_s: float = _START_S) -> None:
        self.log = log
        self._backends = tempfile.TemporaryDirectory(prefix="edgevis-triton-")
        try:
            executable, backends = _find(Path(self._backends.name))
            self.address = f"127.0.0.1:{_free_port()}"
            with log.open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603 - the server that was found
                    [
                        str(executable),
                        f"--model-repository={repository}",
                        f"--backend-directory={backends}",
                        f"--http-port={self.address.rpartition(':')[2]}",
                        "--http-address=127.0.0.1",
                        "--allow-grpc=false",
                        "--allow-metrics=false",
                        "--disable-auto-complete-config",
                    ],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(executable),
                )
        except BaseException:
            self._backends.cleanup()
            raise
        try:
            self._wait_until_ready(start_s)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where it answers, ``http://127.0.0.1:PORT``."""
        return f"http://{self.address}"

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._backends.cleanup()

    def _wait_until_ready(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5):  # noqa: S310 - this machine
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise UnavailableError(f"tritonserver did not start:\n{self.log.read_text(errors='replace')[-4000:]}")


def _find(folder: Path) -> tuple[Path, Path]:
    """The executable and the folder of its backends.

    The wheel ``nvidia-pytriton`` has the server with the Python backend, and a stub for each version of Python that
    belongs beside it; NumPy 1, which the stub was built for, lies in the same folder.
    """
    found = shutil.which("tritonserver")
    if found and (_INSTALLED / "python").is_dir():
        return Path(found), _INSTALLED
    own = os.environ.get(VARIABLE)
    if not own:
        raise UnavailableError("no tritonserver is installed; on x86-64 with glibc 2.35 `make test` brings one")
    root = Path(own) / "pytriton" / "tritonserver"
    if not root.is_dir():
        raise InputError(f"{VARIABLE} is {own}, which holds no nvidia-pytriton")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version
    if not stub.is_dir():
        raise UnavailableError(f"nvidia-pytriton has no stub for Python {version}")
    shutil.copytree(root / "backends", folder, dirs_exist_ok=True)
    shutil.copy(stub / "triton_python_backend_stub", folder / "python")
    for file in (root / "bin" / "tritonserver", folder / "python" / "triton_python_backend_stub"):
        file.chmod(0o755)
    return root / "bin" / "tritonserver", folder


def _environment(executable: Path) -> dict[str, str]:
    """For the server: the packages of this interpreter, and what the wheel brings beside them."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[1])
    path = [os.environ.get(VARIABLE, ""), root, os.environ.get("PYTHONPATH", ""), sysconfig.get_paths()["purelib"]]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if os.environ.get(VARIABLE):
        libraries = [sysconfig.get_config_var("LIBDIR") or "", str(executable.parents[3] / "nvidia_pytriton.libs")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return environment


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
