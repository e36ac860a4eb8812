"""The sample population is reproducible, valid and like the histograms that it is drawn from."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from serving.bundle import Manifest, load_manifest
from serving.signature import Signature
from training.population import CHUNK, key_of, population, stream

MANIFEST = load_manifest(Path(__file__).parents[2] / "models" / "champion" / "campaigns")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return MANIFEST


def test_the_same_seed_gives_the_same_customers_and_another_gives_others(manifest: Manifest) -> None:
    assert population(manifest, 300, seed=1) == population(manifest, 300, seed=1)
    first, second = population(manifest, 300, seed=1)[1], population(manifest, 300, seed=2)[1]
    assert not {row[0] for row in first} & {row[0] for row in second}


def test_fewer_customers_are_the_first_of_more(manifest: Manifest) -> None:
    _, many = population(manifest, CHUNK + 50, seed=1)
    assert population(manifest, 100, seed=1)[1] == many[:100]
    assert len(many) == CHUNK + 50
    assert len({row[0] for row in many}) == len(many)


def test_a_million_customers_are_streamed_in_chunks(manifest: Manifest) -> None:
    chunks = list(islice(stream(manifest, 1_000_000, seed=1), 2))
    assert [len(rows) for _, rows in chunks] == [CHUNK, CHUNK]
    assert sum(len(rows) for _, rows in stream(manifest, 25_000, seed=1)) == 25_000


def test_keys_are_distinct_64_bit_integers_in_text() -> None:
    keys = [key_of(number, seed) for seed in (0, 1, 2) for number in range(20_000)]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= int(key) < 2**63 and key == str(int(key)) for key in keys)
    assert 0.45 < sum(key.startswith("-") for key in keys) / len(keys) < 0.55


def test_every_customer_passes_the_signature_and_the_shares_are_those_of_the_reference(manifest: Manifest) -> None:
    names, rows = population(manifest, CHUNK, seed=3)
    assert names == [manifest.key, *(each.name for each in manifest.inputs)]
    Signature(manifest.inputs).encode(names, rows, ignore=manifest.key)
    reference = manifest.reference["phone_brand"]
    total = sum(reference.categories.values()) + reference.other
    brands = Counter(row[1] for row in rows)
    for brand, count in list(reference.categories.items())[:5]:
        assert abs(brands[brand] / len(rows) - count / total) < 0.02
    assert sum(brand not in reference.categories for brand in brands) > 0  # some that the model doesn't know
    with_usage = [row for row in rows if row[names.index("number_of_events")] is not None]
    assert 0.04 < len(with_usage) / len(rows) < 0.09
    assert all(row[names.index("popular_day")] is not None for row in with_usage)


def test_models_belong_to_their_brands(manifest: Manifest) -> None:
    _, rows = population(manifest, 5000, seed=4)
    within = manifest.reference["device_model"].within
    known = {model for models in within.values() for model in models}
    for _, brand, model, *_ in rows:
        assert model not in known or model in within.get(brand, {})
