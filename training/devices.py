"""The campaigns data: devices with gender and age, a few of them with usage events, read as text and joined by id.

Invariant: values stay text up to the signature's encoding, so that training reads a device exactly as serving reads a CSV file.
"""

from __future__ import annotations

import csv
import hashlib
import lzma
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.bundle import Training
from serving.signature import Input, InputType
from training.errors import DataError

DEVICES, USAGE, EVENTS = "devices.csv.xz", "devices_with_events.csv.xz", "events_head.csv.xz"
KEY = "device_id"
MIN_CUSTOMERS = 20
"""A category of fewer customers is neither learned nor stored: it is served as unknown."""

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def _usage(name: str, kind: InputType, description: str, example: str | float, **more: Any) -> Input:
    """Declare an input that is known only for devices with usage events."""
    return Input(name, kind, description, example, missing=True, group="usage", **more)


INPUTS = [
    Input("phone_brand", "category", "Brand of the phone", "小米"),
    Input("device_model", "category", "Model of the phone, as its brand names it", "红米note", within="phone_brand"),
    _usage("number_of_events", "integer", "Usage events seen", 24, unit="events", minimum=0),
    _usage("popular_hour", "integer", "Hour of the day with most events", 20, unit="hour", minimum=0, maximum=23),
    _usage("median_lat", "number", "Median latitude, 0 if hidden", 31.2, unit="degrees", minimum=-90, maximum=90),
    _usage("median_long", "number", "Median longitude, 0 if hidden", 121.4, unit="degrees", minimum=-180, maximum=180),
    _usage("total_apps_installed", "number", "Apps installed", 35.5, unit="apps", minimum=0),
    _usage("total_apps_active", "number", "Apps active", 12, unit="apps", minimum=0),
    _usage("n_categories", "integer", "Categories of the apps in use", 4, unit="categories", minimum=0),
    _usage("avg_events_hour", "number", "Average events in an hour that has any", 1.6, unit="events/hour", minimum=0),
    _usage("popular_category", "category", "Id of the most used category of apps", 27, numeric_ids=True),
    _usage("avg_events_day", "number", "Average events in a day that has any", 4.2, unit="events/day", minimum=0),
    _usage("percentage_of_active_apps", "number", "Active apps / installed", 0.43, unit="fraction", minimum=0, maximum=1),
    _usage("popular_day", "category", "Day of the week with most events", "Friday", enum=WEEKDAYS),
    _usage("geo_cluster", "category", "Cluster of the location, coarse", "Cluster 1"),
    _usage("geo_cluster_2", "category", "Cluster of the location, fine", "Cluster 1"),
]


@dataclass(frozen=True)
class Devices:
    """n devices: `rows` are their inputs as text (blank: missing), the arrays, of n, their labels and the given split."""

    rows: list[list[str]]
    female: NDArray[np.int64]
    age: NDArray[np.float64]
    test: NDArray[np.bool_]
    usage: NDArray[np.bool_]
    source: Training

    @property
    def names(self) -> list[str]:
        """The columns of `rows`."""
        return [each.name for each in INPUTS]


def read_devices(folder: Path, seed: int) -> Devices:
    """Read and join the files in `folder`, or in its folder `talkingdata`. Raises DataError."""
    folder = folder / "talkingdata" if (folder / "talkingdata").is_dir() else folder
    names = [each.name for each in INPUTS]
    own, shared = names[:2], names[2:]
    devices = _read(folder / DEVICES, [KEY, "gender", "age", "split", *own])
    usage = {row[0]: row[1:] for row in _read(folder / USAGE, [KEY, *shared])}
    blank = [""] * len(shared)
    return Devices(
        rows=[row[4:] + usage.get(row[0], blank) for row in devices],
        female=np.array([row[1] == "F" for row in devices], dtype=np.int64),
        age=np.array([_age(row, folder) for row in devices]),
        test=np.array([row[3] == "test" for row in devices]),
        usage=np.array([row[0] in usage for row in devices]),
        source=Training(
            files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (DEVICES, USAGE)},
            rows={"devices": len(devices), "devices_with_events": sum(row[0] in usage for row in devices)},
            span=_span(folder / EVENTS),
            seed=seed,
        ),
    )


def declare(rows: Sequence[Sequence[str]]) -> list[Input]:
    """Return the inputs with the categories that at least MIN_CUSTOMERS of these rows have, the most frequent first."""
    declared = []
    for place, each in enumerate(INPUTS):
        if each.type == "category":
            counts = Counter(row[place] for row in rows)
            known = sorted((n for n in counts if n and counts[n] >= MIN_CUSTOMERS), key=lambda n: (-counts[n], n))
            declared.append(msgspec.structs.replace(each, categories=known))
        else:
            declared.append(each)
    return declared


def _read(path: Path, columns: Sequence[str]) -> list[list[str]]:
    try:
        with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            names = next(lines, [])
            lacking = [name for name in columns if name not in names]
            if lacking:
                raise DataError(f"{path}: column {lacking[0]!r} is missing; found {', '.join(names)}")
            places = [names.index(name) for name in columns]
            return [[row[place] for place in places] for row in lines]
    except (OSError, lzma.LZMAError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None
    except IndexError:
        raise DataError(f"{path}: line {lines.line_num} has too few values") from None


def _age(row: Sequence[str], folder: Path) -> float:
    try:
        return float(row[2])
    except ValueError:
        raise DataError(f"{folder / DEVICES}: device {row[0]}: age {row[2]!r} is no number") from None


def _span(path: Path) -> tuple[str, str] | None:
    """Return the first and last time of the raw events, where they are at hand."""
    if not path.exists():
        return None
    times = [row[0].replace(" ", "T") for row in _read(path, ["timestamp"])]
    return min(times), max(times)
