"""What Linux says of a tree of processes and of the machine. No host name, path or user is kept."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("numpy", "onnxruntime", "scikit-learn", "orjson", "msgspec", "uvicorn", "uvloop", "httptools")


class Usage(NamedTuple):
    """CPU seconds so far (user and system) and memory in bytes; PSS shares pages among the processes that map them."""

    cpu: float
    rss: int
    pss: int


def tree(root: int) -> list[int]:
    """Return the process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def cpu(processes: list[int]) -> float:
    """Return the CPU seconds that these processes have used, in steps of a clock tick (10 ms)."""
    return sum((int(fields[11]) + int(fields[12])) / TICKS for fields in map(_stat, processes) if fields)


def usage(processes: list[int]) -> Usage:
    """Return the processes' CPU time and memory."""
    rss = pss = 0
    for process in processes:
        try:
            text = (PROC / str(process) / "smaps_rollup").read_text()
        except OSError:
            continue
        rss += _kibibytes("Rss", text)
        pss += _kibibytes("Pss", text)
    return Usage(cpu(processes), rss, pss)


def facts() -> dict[str, object]:
    """Return what figures depend on: processor, cores, memory, kernel and the libraries' versions."""
    model = re.search(r"model name\s*:\s*(.+)", (PROC / "cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", (PROC / "meminfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; [] if the process is gone."""
    try:
        return (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kibibytes(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
