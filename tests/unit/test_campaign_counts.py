"""Campaigns are counted by ids that are bounded, whether or not the engine holds the rules that gave them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from harness.records import exposures
from serving.metrics import Metrics


@pytest.mark.parametrize(
    ("ids", "counted"),
    [
        # The rules are here: their ids, and nothing else.
        ([1, 2, 300], {"1": 1, "2": 1, "300": 1, "none": 1, "other": 2}),
        # They are in a container of their own: numbers of two digits.
        ([], {"1": 1, "2": 1, "12": 1, "none": 1, "other": 2}),
    ],
)
def test_a_campaign_is_counted_by_its_id(ids: list[int], counted: dict[str, int]) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.campaigns_in_use(ids)
    metrics.rows(exposures(4, decision={"campaigns": ["1,2", "", "12,300", "٣"]}))
    metrics.flush()
    samples = [each for metric in registry.collect() for each in metric.samples if each.name == "contender_campaigns_total"]
    assert {each.labels["campaign"]: each.value for each in samples} == counted
