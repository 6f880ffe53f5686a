"""The processor's name, and the environment that decides which kernels an engine selects."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

# Instruction sets that numeric kernels are chosen by; the other flags of a processor do not matter to them.
_NUMERIC = ("sse", "ssse", "fma", "f16c", "avx", "amx", "asimd", "sve", "fphp", "bf16", "i8mm", "sme")
# Variables that make an engine leave instructions unused that the processor has.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}


def machine_name() -> str:
    """The processor's name as the system reports it."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def environment(backend: str) -> dict[str, str]:
    """The versions and CPU features that select a backend's CPU kernels: equal environments run the same kernels.

    Args:
        backend: A name in :mod:`runtime.backends`.
    """
    flags = (_cpu_line("flags") or _cpu_line("Features")).split()
    numeric = sorted(flag for flag in flags if flag.startswith(_NUMERIC))
    return {
        "processor": machine_name(),
        "instructions": hashlib.sha256(" ".join(numeric).encode()).hexdigest()[:16],
        "limits": ",".join(f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)),
        "package": _version(backend),
    }


def _version(backend: str) -> str:
    for name in _PACKAGES.get(backend, ()):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return backend


def _cpu_line(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
