"""The graph's nodes as plain classes with Seldon's documented methods: one class for the engine and for Seldon's wrapper.

Invariant: no framework is imported here, and both doors (`*_raw` for the wrapper, `answer` for the engine) meet in one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from router.epoch import CHAMPION
from router.errors import InvalidKey
from router.keys import canonical_key
from router.pseudonyms import read_secret
from router.sources import EpochFile
from serving.bundle import Bundle
from serving.campaigns import RulesFile
from serving.errors import BadRequest, ServingError
from serving.messages import MAX_ROWS
from serving.table import Table, parse


class _Unit:
    """What every class here has for Seldon's wrapper alone."""

    @property
    def model_error_handler(self) -> Any:
        """Return the Flask blueprint that the wrapper asks for: errors keep their HTTP status and body, 400 not 500."""
        flask = importlib.import_module("flask")
        blueprint = flask.Blueprint("errors", __name__)

        @blueprint.app_errorhandler(ServingError)  # type: ignore[untyped-decorator]
        def answer(error: ServingError) -> Any:
            return flask.Response(error.body(), error.status, mimetype="application/json")

        return blueprint


class Model(_Unit):
    """A MODEL node: it answers the key and the bundle's columns (scores, deciles, ages, bands) for each row."""

    def __init__(self, bundle: str) -> None:
        """Load the bundle in this folder. Raises BundleError before anything is unpickled if a digest is wrong."""
        self.bundle = Bundle.load(Path(bundle))
        self.digest = self.bundle.digest

    def check(self, table: Table) -> None:
        """Validate all rows and keep their feature matrix in the table's cache. Raises BadRequest naming field and row."""
        signature, key = self.bundle.signature, self.bundle.key
        if (signature, key) not in table.cache:
            encode = signature.parse_text if table.text else signature.encode
            table.cache[signature, key] = encode(table.names, table.rows, ignore=key)

    def answer(self, table: Table) -> Table:
        """Return the key and the answer columns of each row, in order. Raises BadRequest."""
        self.check(table)
        return self._answered(table, self.bundle.answer(table.cache[self.bundle.signature, self.bundle.key]))

    def answer_all(self, tables: Sequence[Table]) -> list[Table]:
        """Return what `answer` does for each table, by one call of the model. Raises BadRequest if any table is wrong."""
        for table in tables:
            self.check(table)
        matrices = [table.cache[self.bundle.signature, self.bundle.key] for table in tables]
        columns = self.bundle.answer(np.concatenate(matrices))
        ends = list(accumulate(table.count for table in tables))
        return [
            self._answered(table, {name: values[end - table.count : end] for name, values in columns.items()})
            for table, end in zip(tables, ends, strict=True)
        ]

    def _answered(self, table: Table, columns: dict[str, list[Any]]) -> Table:
        keys = table.column(self.bundle.key) or [None] * table.count
        return Table([self.bundle.key, *columns], columns=[keys, *columns.values()])

    def init_metadata(self) -> dict[str, Any]:
        """Return what Seldon's metadata routes tell of a node; the bundle's digest is its version."""
        manifest = self.bundle.manifest
        names, example = ([each.name for each in manifest.inputs], [each.example for each in manifest.inputs])
        inputs = [manifest.key, *names]
        outputs = [manifest.key, *self.bundle.answer(self.bundle.signature.encode(names, [example]))]
        return {
            "name": manifest.name,
            "platform": "contender",
            "versions": [self.digest],
            "inputs": [{"messagetype": "ndarray", "schema": {"names": inputs}}],
            "outputs": [{"messagetype": "ndarray", "schema": {"names": outputs}}],
        }

    def predict_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer a parsed message under Seldon's wrapper. The wrapper's own decoding would turn ids into floats."""
        return _message(self.answer(parse(message, max_rows=MAX_ROWS)), {"digest": self.digest})


class Campaigns(_Unit):
    """An OUTPUT_TRANSFORMER node: it adds `gender` and `campaigns` by the analyst's rules, and follows the rules file."""

    def __init__(self, decision: str) -> None:
        """Read the rules. Raises CampaignsError naming the line."""
        self.rules = RulesFile(Path(decision))

    def answer(self, table: Table) -> Table:
        """Return the table with the decision's columns. Raises CampaignsError if a column is missing."""
        return self.rules.decider.decide(table)

    def transform_output_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        """Decide on a parsed message under Seldon's wrapper; `meta` is passed on as it came."""
        self.rules.refresh()
        answered = _message(self.answer(parse(message, max_rows=MAX_ROWS)), {})
        return {**answered, "meta": message.get("meta") or {}}


class Router(_Unit):
    """The ROUTER node for Seldon's own executor, which can send a request to one arm only (the engine splits by row instead).

    All rows of one arm: that arm. Otherwise, or without an epoch: the champion. The epoch comes from the file that the
    environment variable CONTENDER_EPOCH_FILE names; its pins need the secret of the customer keys, where there is one, in the
    file CONTENDER_KEY_SECRET_FILE.
    """

    def __init__(self, contender: str = "v1", key: str = "device_id") -> None:
        self._key = key
        secret = os.environ.get("CONTENDER_KEY_SECRET_FILE")
        path = Path(os.environ.get("CONTENDER_EPOCH_FILE", "epoch.json"))
        self._epochs = EpochFile(path, secret=read_secret(Path(secret)) if secret else b"")

    def route_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the index of the arm for a parsed message, and in the tags whether the rows disagreed. Raises BadRequest."""
        self._epochs.refresh()
        keys = self._keys(message)
        if self._epochs.current is None:
            return _route(0, "no-epoch")
        arms = {self._epochs.current.assign_one(key).arm for key in keys}
        if len(arms) > 1:
            return _route(0, "mixed-batch")
        names = [CHAMPION, *self._epochs.current.epoch.arms]
        return _route(names.index(arms.pop()), "hash")

    def _keys(self, message: dict[str, Any]) -> list[str | None]:
        """Return each row's key: its column's, else the one in meta.tags. Headers don't reach a wrapped class."""
        table = parse(message, max_rows=MAX_ROWS)
        meta = message.get("meta")
        tags = meta.get("tags") if type(meta) is dict else None
        given = tags.get(self._key) if type(tags) is dict else None
        try:
            named = canonical_key(given, f"meta.tags.{self._key}")
            column = table.column(self._key) or [None] * table.count
            return [canonical_key(key, self._key, row) or named for row, key in enumerate(column)]
        except InvalidKey as error:
            raise BadRequest(str(error)) from None


def _message(table: Table, tags: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"names": table.names, "ndarray": table.rows}, "meta": {"tags": tags}}


def _route(index: int, reason: str) -> dict[str, Any]:
    return {"data": {"ndarray": [[index]]}, "meta": {"tags": {"reason": reason}}}
