"""The commands of docs/kubernetes.md do what the page says, typed as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.kube import Kube
from harness.server import ROOT

PAGE = ROOT / "docs/kubernetes.md"


def commands() -> list[str]:
    """Return each command after a `$` in the page's console blocks, with the lines that continue it."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [command.strip() for block in blocks for command in re.split(r"^\$ ", block, flags=re.MULTILINE) if command.strip()]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command.split())[:60])
def test_the_page_s_commands_work_in_their_order(kube: Kube, command: str) -> None:
    text = command.replace("kind-contender", kube.context).replace("http://localhost:8080", kube.url)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr or done.stdout
    assert "FAILURE" not in done.stdout
    assert done.stdout
