"""`contender serve`: the first epoch, the supervisor, and what a newcomer sees when it is ready."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from console import epochs
from console.errors import CommandError
from console.home import Home
from experiment.declaration import Experiment, load_declaration, parse_declaration
from router.epoch import Epoch
from router.resource import API_VERSION, KIND
from serving.bundle import MANIFEST, load_manifest
from serving.campaigns import load_rules
from serving.graph import Deployment, load_deployment
from serving.placement import behind_http
from serving.settings import Settings

log = logging.getLogger("contender.serve")


def declaration_for(graph: Path | None, deployment: Deployment, given: Path | None) -> Experiment:
    """Return the experiment given, else `experiment.yaml` beside the graph, else a default one of the deployment's name."""
    beside = None if graph is None else graph.parent / "experiment.yaml"
    if given is not None:
        return load_declaration(given)
    if beside is not None and beside.exists():
        return load_declaration(beside)
    name = deployment.name
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": {"salt": f"{name}-1"}}
    return parse_declaration(document, f"default for {graph or name}")


def served_digests(deployment: Deployment) -> tuple[dict[str, str], str]:
    """Return the bundle digest of each arm and other model node, and the digest of the rules that decide.

    "" where it isn't known: of a class without a bundle, and of a node behind HTTP whose file isn't here. Raises CommandError.
    """
    digests: dict[str, str] = {}
    decision = ""
    for node in deployment.graph.walk():
        if node.is_contender_router:
            digests |= {child.name: "" for child in node.children}
        bundle, rules = node.parameter_values.get("bundle"), node.parameter_values.get("decision")
        if bundle is not None:
            manifest = Path(str(bundle)) / "model.json"
            try:
                digests[node.name] = hashlib.sha256(manifest.read_bytes()).hexdigest()
            except OSError as error:
                if not node.is_remote:
                    raise CommandError(
                        f"node {node.name}: {manifest}: {error.strerror}; run from the repository's root"
                    ) from None
        if rules is not None and (not node.is_remote or Path(str(rules)).exists()):
            decision = load_rules(Path(str(rules))).digest()
    return digests, decision


def smallest_request(deployment: Deployment) -> str | None:
    """Return a request of one row with what the champion's bundle can't do without; None where no bundle is here."""
    for node in deployment.graph.walk():
        folder = Path(str(node.parameter_values.get("bundle", "")))
        if (folder / MANIFEST).exists():
            manifest = load_manifest(folder)
            row: dict[str, Any] = {manifest.key: "1"} | {
                each.name: each.example for each in manifest.inputs if not each.missing
            }
            message = {"data": {"names": list(row), "ndarray": [list(row.values())]}}
            return json.dumps(message, ensure_ascii=False)
    return None


def prepare(home: Home, deployment: Deployment, declared: Experiment) -> Epoch:
    """Make sure that the ledger has an epoch for what is served, and return it."""
    digests, decision = served_digests(deployment)
    store = home.open_store(create=True)
    try:
        epoch, begun = epochs.begin(store, declared, digests, decision)
    finally:
        store.close()
    if begun:
        log.info("epoch %d of test %s, salt %s: %s", epoch.epoch, epoch.test, epoch.salt, begun)
    return epoch


def _collect_metrics_in(folder: Path) -> None:
    """Let every process of this server write its metrics there. prometheus-client reads the variable when it is imported."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def serve(graph: Path, experiment: Path | None, home: Home, *, placement: str = "process", **options: Any) -> None:
    """Serve a manifest until SIGTERM. Raises what `run` raises, and DeclarationError."""
    deployment = load_deployment(graph)
    if placement == "containers":
        deployment = behind_http(deployment)
    run(deployment, declaration_for(graph, deployment, experiment), home, **options)


def run(deployment: Deployment, declared: Experiment, home: Home, **options: Any) -> None:
    """Serve until SIGTERM. `options` are settings by name; None leaves one to the environment.

    Raises CommandError, GraphError, BundleError or CampaignsError before the first request.
    """
    with home.lock():
        # A graph that splits nobody has no test, and no epoch.
        settings = Settings.from_environment(os.environ, deployment=deployment, home=home.path, test=declared.test, **options)
        settings.key_secret()
        followed = settings.experiment_resource
        if followed:
            # The API server holds this test's state. Neither it nor the ledger need be there for a start.
            settings = msgspec.structs.replace(settings, test=followed)
        epoch = prepare(home, deployment, declared) if deployment.graph.splits and not followed else None

        _collect_metrics_in(settings.metrics)
        from prometheus_client import CollectorRegistry

        from ledger.retention import Retention
        from ledger.shipper import Shipper
        from ledger.spool import segments
        from ledger.store import Store
        from serving.metrics import Metrics
        from serving.supervisor import Supervisor, WorkerFailedError

        def ready() -> None:
            url = f"http://{settings.host}:{settings.port}"
            log.info("serving %s on %s, %d worker(s), state in %s", settings.test, url, settings.workers, home.path)
            if epoch is None:
                if followed:
                    log.info("following experiment %s", followed)
                return
            share = ", ".join(f"{name} {arm.share / 100:g} %" for name, arm in epoch.arms.items())
            log.info("epoch %d: %s of the customers, the champion the rest", epoch.epoch, share)
            if example := smallest_request(deployment):
                # On stdout and in one piece, so that it can be copied, or run by a script.
                print(f"curl -s {url}/api/v1.0/predictions -H 'Content-Type: application/json' -d {shlex.quote(example)}")  # noqa: T201
                sys.stdout.flush()

        retention = Retention(settings.retention_days, settings.exposure_retention_days)
        supervisor = Supervisor(
            settings,
            open_store=lambda: Store.open(settings.ledger),
            open_shipper=lambda store: Shipper(settings.spool, store, retention=retention),
            metrics=lambda: Metrics(CollectorRegistry()),
            ready=ready,
        )
        try:
            supervisor.run()
        except (OSError, WorkerFailedError) as error:
            raise CommandError(str(error)) from None
    if left := segments(settings.spool):
        log.warning("stopped; %d segment(s) in %s wait for the ledger, the next start ships them", len(left), settings.spool)
    else:
        log.info("stopped; every answered row is in the ledger")
