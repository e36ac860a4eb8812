"""How long a change of an Experiment takes until every replica uses it: from the API server's acknowledgement of the patch to
the moment at which the last worker of a replica took the epoch over, by the replica's own metric. All clocks are one machine's.

    python -m bench.epochs --context kind-contender --namespace NAMESPACE [--changes 100] [--pods seldon-app=campaigns-main]

Without --pods two `contender serve` processes on this machine are the replicas, and an Experiment is made for them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.machine import facts
from router.cluster import Cluster
from router.resource import Resource

NAME = "campaigns"
CHANGED = "contender_epoch_changed_timestamp_seconds"
PORTS = 9731, 9732
PAUSE_SECONDS = 0.3
"""Between two changes on the average, at random, so that they don't keep step with the workers' looks at the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--pods", help="measure these pods instead of two processes here")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    cluster = Cluster(context=given.context, namespace=given.namespace, user="bench")
    with ExitStack() as stack:
        if given.pods:
            pods = cluster.ready_pods(given.pods)
            replicas: list[Callable[[], str]] = [lambda pod=pod: cluster.scrape(pod) for pod in pods]  # type: ignore[misc]
        else:
            replicas = [stack.enter_context(_engine(port, given.context, given.namespace)) for port in PORTS]
        seconds = list(_effects(cluster, replicas, given.changes))
    result = {
        "replicas": len(replicas),
        "changes": given.changes,
        "seconds": {name: round(value, 4) for name, value in _summary(seconds).items()},
        "machine": facts(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")


def _effects(cluster: Cluster, replicas: list[Callable[[], str]], changes: int) -> Iterator[float]:
    """Yield for each change the seconds until the last replica had it."""
    chance = random.Random(1)
    for number in range(changes):
        (document,), _ = cluster.experiments(NAME)
        resource = Resource.read(document)
        share = f"{10 + number % 50}.{number % 10}%"
        epoch = Resource.read(cluster.change(NAME, {"share": share}, resource.metadata.resource_version)).number
        acknowledged = time.time()
        yield max(_taken_at(replica, epoch) for replica in replicas) - acknowledged
        time.sleep(chance.uniform(0, 2 * PAUSE_SECONDS))


def _taken_at(replica: Callable[[], str], epoch: int) -> float:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        text = replica()
        if _value(text, "contender_epoch") == epoch:
            return _value(text, CHANGED)
        time.sleep(0.05)
    sys.exit(f"epoch {epoch} did not take effect within 30 s")


def _value(text: str, series: str) -> float:
    found = re.search(rf'^{series}\{{test="{NAME}"\}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _summary(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(seconds)}


@contextmanager
def _engine(port: int, context: str | None, namespace: str) -> Iterator[Callable[[], str]]:
    """Run an engine with two workers that follows the Experiment by a kubeconfig of its own."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "kubeconfig"
        view = ["kubectl", "config", "view", "--minify", "--flatten", "--raw", *(["--context", context] if context else [])]
        config.write_text(subprocess.run(view, check=True, capture_output=True, text=True).stdout, encoding="utf-8")
        environment = {**os.environ, "KUBECONFIG": str(config), "CONTENDER_EXPERIMENT_RESOURCE": NAME}
        subprocess.run(
            ["kubectl", "config", "set-context", "--current", "--namespace", namespace],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run(["kubectl", "apply", "-f", "manifests/base/experiment.yaml"], env=environment, check=True)
        contender = Path(sys.executable).with_name("contender")
        command = [contender, "serve", "--port", str(port), "--workers", "2", "--home", f"{folder}/home"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        def scrape() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/prometheus", timeout=5) as answer:
                text: str = answer.read().decode()
            return text

        try:
            end = time.monotonic() + 60
            while True:
                try:
                    if _value(scrape(), "contender_epoch"):
                        break
                except OSError:
                    pass
                if time.monotonic() > end or process.poll() is not None:
                    sys.exit(f"an engine did not start: {(Path(folder) / 'log').read_text()}")
                time.sleep(0.1)
            yield scrape
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
