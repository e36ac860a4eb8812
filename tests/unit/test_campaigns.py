"""The analyst's rules: what they decide, what is refused and where, and what may change during a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.campaigns import AGE_BANDS, CampaignsError, Decider, RulesFile, load_rules, parse_rules
from serving.table import Table

SHIPPED = Path(__file__).parents[2] / "manifests/base/campaigns.yaml"
TEXT = SHIPPED.read_text(encoding="utf-8")


def rewrite(path: Path, text: str) -> None:
    """Replace the file the way an editor does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


@pytest.mark.parametrize("decile", range(1, 11))
@pytest.mark.parametrize("band", AGE_BANDS)
def test_deciles_and_bands_become_gender_and_campaigns(decile: int, band: str) -> None:
    gender = "female" if decile <= 3 else "male" if decile >= 8 else ""
    wanted = {"female": ["1", "2"], "male": ["3"], "": []}[gender] + [str(4 + AGE_BANDS.index(band))]
    table = Table(
        ["device_id", "arm", "gender_score", "gender_decile", "age", "age_band"], [["x", "a", 0.5, decile, 3.0, band]]
    )
    answer = Decider(load_rules(SHIPPED)).decide(table)
    assert answer.names == [
        "device_id", "arm", "gender_score", "gender_decile", "gender", "age", "age_band", "campaigns",
    ]  # fmt: skip
    assert answer.rows == [["x", "a", 0.5, decile, gender, 3.0, band, ",".join(wanted)]]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("gender: female }", "gender: femal }", "campaigns.0.when.gender: 'femal'"),
        ('age_band: ">32"', 'age_band: ">33"', "campaigns.5.when.age_band: '>33'"),
        ("id: 3", "id: three", "campaigns.2.id"),
        ("id: 4", "id: 3", "campaigns.3.id: id 3 is used twice"),
        ("[sms, push, email]", "[letter]", "letter"),
        ("[sms, push, email]", "[]", "campaigns.0.channels"),
        ("name: Fashion", "nam: Fashion", "nam"),
        ("[1, 2, 3]", "[1, 2, 8]", "decile 8"),
        ("[1, 2, 3]", "[0]", "0 is no decile"),
        ("when: { gender: male }", "when: {}", "says nothing"),
        ("id: 1\n", "id: 1\n    id: 9\n", "given twice"),
        ("  - id: 5", " - id: 5", "expected"),
    ],
)
def test_a_fault_is_named_with_its_line(before: str, after: str, said: str) -> None:
    assert before in TEXT
    broken = TEXT.replace(before, after, 1)
    with pytest.raises(CampaignsError) as caught:
        parse_rules(broken, "campaigns.yaml")
    line = TEXT[: TEXT.index(before)].count("\n") + 1
    assert said in str(caught.value)
    named = int(str(caught.value).split(":")[1])
    assert line <= named <= line + 1


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "gender: {}\n"])
def test_a_file_without_rules_is_refused(text: str) -> None:
    with pytest.raises(CampaignsError, match=r"rules\.yaml:1"):
        parse_rules(text, "rules.yaml")


def test_the_digest_covers_what_decides_and_not_wording_or_order() -> None:
    rules = parse_rules(TEXT, "a")
    reworded = parse_rules(TEXT.replace("Fashion", "Clothes").replace("[sms, push, email]", "[sms]"), "b")
    assert reworded.digest() == rules.digest()
    assert rules.changes(reworded) == []
    changed = parse_rules(TEXT.replace("[1, 2, 3]", "[1, 2]"), "c")
    assert changed.digest() != rules.digest()
    assert rules.changes(changed) == ["gender female: deciles [1, 2, 3] -> [1, 2]"]


def test_a_running_test_takes_wording_and_refuses_rules_until_a_new_test_expects_them(tmp_path: Path) -> None:
    path = tmp_path / "campaigns.yaml"
    rewrite(path, TEXT)
    file = RulesFile(path)
    first = file.decider.digest
    assert not file.refresh(first)

    rewrite(path, TEXT.replace("Fashion", "Clothes"))
    assert file.refresh(first)
    assert file.decider.rules.campaigns[0].name == "Clothes"

    rewrite(path, TEXT.replace("[1, 2, 3]", "[1, 2]"))
    assert not file.refresh(first)
    assert file.refused is not None
    assert "[1, 2, 3] -> [1, 2]" in file.refused
    assert file.decider.digest == first

    second = load_rules(path).digest()
    assert file.refresh(second)
    assert file.decider.digest == second
    assert file.refused is None


def test_a_broken_file_leaves_the_rules_in_use(tmp_path: Path) -> None:
    path = tmp_path / "campaigns.yaml"
    rewrite(path, TEXT)
    file = RulesFile(path)
    rewrite(path, TEXT.replace("[1, 2, 3]", "[1, 2, 11]"))
    assert not file.refresh()
    assert file.refused is not None
    assert "11 is no decile" in file.refused
    assert file.decider.gender(3) == "female"
    path.unlink()
    assert not file.refresh()
    assert file.decider.gender(3) == "female"


def test_an_answer_without_the_needed_columns_is_an_error_that_names_them() -> None:
    with pytest.raises(CampaignsError, match="'gender_decile'"):
        Decider(load_rules(SHIPPED)).decide(Table(["device_id"], [["x"]]))
