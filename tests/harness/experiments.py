"""Experiments in a namespace of the tests' own, and a relay before the API server that can be cut without harm to others."""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from harness.kube import cluster_name, run, wait_until
from harness.ports import free_port
from harness.server import CONTENDER, ROOT, Server

MANIFEST = ROOT / "manifests/base/experiment.yaml"
CRD = ROOT / "manifests/base/crd-experiment.yaml"
NAME = "campaigns"


class Namespace:
    """A namespace with the custom resource's definition applied to its cluster; Experiments are NAME unless said otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.context = f"kind-{cluster_name()}"

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(["kubectl", "--context", self.context, "--namespace", self.name, *arguments], stdin=stdin, check=check)

    def apply(self, *options: str) -> None:
        """Apply the manifest that is in Git."""
        self.kubectl("apply", "-f", str(MANIFEST), *options)

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.kubectl("get", "experiment", NAME, "-o", "json", "--show-managed-fields").stdout
        )
        return found

    def patch(self, check: bool = True, **spec: Any) -> subprocess.CompletedProcess[str]:
        """Patch the spec blindly, as anybody may."""
        body = json.dumps({"spec": spec})
        return self.kubectl("patch", "experiment", NAME, "--type", "merge", "-p", body, check=check)

    def contender(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this namespace."""
        command = [str(CONTENDER), *arguments, "-n", self.name, "--context", self.context]
        return run(["env", "COLUMNS=200", "CONTENDER_HOME=/nonexistent", *command], check=False)

    def kubeconfig(self, path: Path, *, server: str | None = None, token: str | None = None) -> Path:
        """Write a kubeconfig of this namespace, by another way to the API server or with other rights where told."""
        config = yaml.safe_load(self.kubectl("config", "view", "--minify", "--flatten", "--raw").stdout)
        config["contexts"][0]["context"]["namespace"] = self.name
        if server is not None:
            config["clusters"][0]["cluster"]["server"] = server
        if token is not None:
            config["users"][0]["user"] = {"token": token}
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        path.chmod(0o600)
        return path

    def api_server(self) -> tuple[str, int]:
        config = yaml.safe_load(self.kubectl("config", "view", "--minify", "--raw").stdout)
        host, _, port = config["clusters"][0]["cluster"]["server"].removeprefix("https://").rpartition(":")
        return host, int(port)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace, and delete it with all that is in it."""
    made = Namespace(f"contender-test-{secrets.token_hex(4)}")
    made.kubectl("apply", "-f", str(CRD))
    made.kubectl("wait", "--for=condition=Established", "crd/experiments.contender.dev", "--timeout=30s")
    made.kubectl("create", "namespace", made.name)
    try:
        yield made
    finally:
        made.kubectl("delete", "namespace", made.name, "--wait=false")


def engine(folder: Path, kubeconfig: Path, **settings: object) -> Server:
    """Return a server, not started, that follows the Experiment by this kubeconfig."""
    folder.mkdir(exist_ok=True)
    server = Server(folder, workers=2)
    server.environment = {
        "KUBECONFIG": str(kubeconfig),
        "CONTENDER_EXPERIMENT_RESOURCE": NAME,
        **{f"CONTENDER_{name.upper()}": str(value) for name, value in settings.items()},
    }
    return server


class Relay:
    """A TCP relay on a port of its own. `refuse` is a server that is down, `hang` one whose packets go nowhere."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._flowing = threading.Event()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.restore()

    def restore(self) -> None:
        """Relay again."""
        self._flowing.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def hang(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self._flowing.clear()

    def refuse(self) -> None:
        """Refuse connections, and break those there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Wakes the thread that waits for the next connection.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            with self._lock:
                self._open |= {client, server}
            try:
                self._pump(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        while True:
            ready, _, _ = select.select([client, server], [], [], 0.2)
            if not self._flowing.is_set():
                # What comes now waits in the operating system's buffers, as it would on a broken line.
                self._flowing.wait(0.1)
                continue
            for each in ready:
                data = each.recv(65536)
                if not data:
                    return
                other[each].sendall(data)


def settled(server: Server, epoch: int, seconds: float = 20) -> None:
    """Wait until every worker uses this epoch."""
    wait_until(lambda: server.epoch() == epoch, seconds, f"epoch {epoch} in use", pause_s=0.05)
