"""The settings of a server: each a typed field, then its unit and the reason of its default.

Invariant: a setting comes from an option, else from the environment variable CONTENDER_<FIELD IN CAPITALS>, else its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from router.pseudonyms import read_secret
from serving.graph import Deployment

PREFIX = "CONTENDER_"
GIVEN = ("deployment", "home", "test")
"""Fields that a command decides, never the environment."""


class SettingsError(ValueError):
    """An environment variable that can't be a setting's value; the message names it and what would be right."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker must know; it travels to each spawned process as it is."""

    deployment: Deployment
    """What is served: the graph, read and checked by the parent process."""

    home: Path
    """State of this server: ledger, spool, current epoch. One server a folder."""

    test: str
    """The experiment's name."""

    host: str = "127.0.0.1"
    """Loopback, so that nobody serves a network by accident; a container says 0.0.0.0."""

    port: int = 9000
    """TCP. 9000 is where Seldon expects a container without its own engine."""

    workers: int = 1
    """Processes. One answers thousands of requests a second; a second one helps where there is a second core."""

    max_body_bytes: int = 8 * 1024 * 1024
    """Bytes of a request's body. 10,000 device rows are about 1 MB."""

    max_rows: int = 10_000
    """Rows of one request. More belong into `contender predict`, which streams."""

    store: str = ""
    """The ledger: a file, or postgresql://USER@HOST/DATABASE with the password in PGPASSWORD or PGPASSFILE. Empty: ledger.db in
    CONTENDER_HOME."""

    retention_days: Annotated[int, Meta(ge=0)] = 0
    """Whole days for which the rows' inputs are kept. 0: for ever, so that nothing goes which nobody asked to be removed."""

    exposure_retention_days: Annotated[int, Meta(ge=0)] = 0
    """The same for exposures and pairs: the evidence, so longer than any test. 0: for ever."""

    key_secret_file: str = ""
    """A file with the secret under which ledger and spool hold the HMAC of each customer key. Empty: they hold the key."""

    keep_inputs: bool = True
    """Whether the rows' inputs are kept in the ledger: retraining and drift need them, a privacy rule may forbid them."""

    challenger_budget_seconds: float = 1.0
    """What a challenger may take for its rows; then the champion answers them. It bounds calls over HTTP: a model in this
    process can't be interrupted."""

    shadow_limit: int = 8
    """Requests that one worker's shadow scores at a time; what comes on top is dropped and counted. A slow shadow then costs
    the memory of so many requests and no more."""

    node_timeout_seconds: float = 0.0
    """What any node behind HTTP may take. 0: no limit, as under Seldon's executor."""

    node_patience_seconds: float = 0.5
    """How long a node behind HTTP is asked again whose connection is refused or breaks. While a unit is rolled, Kubernetes
    sends some connections to the pod that has just gone."""

    full_health_checks: bool = False
    """Whether ready means that every node says so, not only that its port is open."""

    prometheus_path: str = "/prometheus"
    """Where metrics are scraped. Seldon's operator says so by a flag."""

    key_header: str = "x-customer-key"
    """The header that names the customer of a one-row request which has no key column and no tag."""

    fsync: bool = False
    """Whether each append waits for the disk. Off: a power cut may lose what the operating system had not written."""

    spool_max_bytes: int = 1024 * 1024 * 1024
    """Bytes of all segments. Below the size limit of the volume, or the kubelet evicts the pod."""

    spool_segment_bytes: int = 32 * 1024 * 1024
    """Bytes of one segment, after which a worker begins the next, so that shipped ones can be deleted. Never more than a
    quarter of the bound, shared by the workers."""

    refresh_seconds: float = 0.1
    """How often a worker looks for a new epoch or rules file. Two `stat` calls each time."""

    experiment_resource: str = ""
    """Name of the Experiment in the pod's own namespace that this server follows, and of its test. Empty: the test's state is
    in the ledger."""

    stale_after_seconds: float = 600.0
    """After so long without a word from whoever holds the test's state everybody gets the champion, so that a replica that
    is cut off can't keep a withdrawn challenger alive. Longer than an upgrade of the control plane; 0: never."""

    drain_seconds: float = 1.0
    """How long after SIGTERM new requests are still answered, each with `Connection: close`, so that clients and load
    balancers move on before the port closes. A pod behind a Service wants 5. Counted apart from the grace period."""

    grace_seconds: int = 20
    """How long requests under way may take after SIGTERM; below Kubernetes' default of 30."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **given: Any) -> Settings:
        """Return the settings `given`, and all others from the environment. A None counts as not given.

        Raises SettingsError naming the variable.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        for field in msgspec.structs.fields(cls):
            text = environment.get(PREFIX + field.name.upper())
            if field.name in chosen or field.name in GIVEN or text is None:
                continue
            try:
                chosen[field.name] = msgspec.convert(text, field.type, strict=False)
            except msgspec.ValidationError as error:
                raise SettingsError(f"{PREFIX}{field.name.upper()}={text!r}: {error}") from None
        return cls(**chosen)

    @property
    def segment_bytes(self) -> int:
        """Return the bytes of one segment that leave room under the bound: a worker's own counts until it begins the next."""
        return min(self.spool_segment_bytes, self.spool_max_bytes // (4 * self.workers))

    @property
    def epoch_file(self) -> Path:
        return self.home / "epoch.json"

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def metrics(self) -> Path:
        return self.home / "metrics"

    @property
    def ledger(self) -> str:
        return self.store or str(self.home / "ledger.db")

    def key_secret(self) -> bytes:
        """Return the secret of the customer keys, empty without one. Raises InvalidSecret."""
        return read_secret(Path(self.key_secret_file)) if self.key_secret_file else b""
