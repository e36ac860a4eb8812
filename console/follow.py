"""`contender follow`: a cluster's epoch as a file, for a router unit that runs under Seldon's own executor.

Invariant: it serves nothing and records nothing; the file is whole at any time, and it ends at once when told to.
"""

from __future__ import annotations

import logging
import signal
import threading

from console.errors import CommandError
from console.home import Home
from router.errors import InvalidEpoch
from router.sources import EpochKeeper
from serving.following import ExperimentSource

log = logging.getLogger("contender.follow")


def follow(experiment: str, home: Home) -> None:
    """Keep the Experiment's epoch in the home's `epoch.json` until SIGTERM. Raises CommandError if none is named."""
    if not experiment:
        raise CommandError("no Experiment is named; give --experiment NAME or CONTENDER_EXPERIMENT_RESOURCE")

    def refused(error: InvalidEpoch) -> None:
        log.error("an epoch is refused, the last good one stays: %s", error)

    ended = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: ended.set())
    with home.lock():
        source = ExperimentSource(experiment, EpochKeeper(home.epoch_file, experiment, refused=refused), refused)
        log.info("following the Experiment %s into %s", experiment, home.epoch_file)
        ended.wait()
        source.close()
