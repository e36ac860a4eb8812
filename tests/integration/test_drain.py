"""A server that is told to end under load breaks no request: clients are told to move on, and what they sent is answered."""

from __future__ import annotations

import os
import signal

import pytest

from harness.clients import Load
from harness.server import Server


@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_under_load_breaks_no_request(two_workers: Server, whole_group: bool) -> None:
    load = Load(two_workers, 8)
    load.wait_answers(500)
    assert two_workers.process is not None
    if whole_group:
        os.killpg(two_workers.process.pid, signal.SIGTERM)
    else:
        two_workers.process.terminate()
    load.join()
    assert two_workers.process.wait(30) == 0
    assert (load.broken, load.failed) == ([], [])
    assert all(client.told_to_close and client.refused for client in load.clients)
    recorded = [each["customer"] for each in two_workers.exposures()]
    assert sorted(recorded) == sorted(load.answered)
