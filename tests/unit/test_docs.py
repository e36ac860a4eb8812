"""The documentation tells the truth: every command and option, every setting, and every local link."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from console.cli import app
from serving.graph import Deployment
from serving.settings import GIVEN, PREFIX, Settings, SettingsError

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_group(app).commands


def test_every_command_and_option_is_documented_and_nothing_else() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `contender ([a-z-]+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(COMMANDS)
    for name, command in COMMANDS.items():
        parts = [command, *getattr(command, "commands", {}).values()]
        options = {option for part in parts for given in part.params for option in (*given.opts, *given.secondary_opts)}
        wanted = {option for option in options if option.startswith("--")} - {"--help"}
        assert set(re.findall(r"`(--[a-z-]+)", sections[name])) == wanted, name


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(CONTENDER_[A-Z_]+)` \| `([^`]*)` \|", text, re.MULTILINE))
    wanted = {
        f"{PREFIX}{field.name.upper()}": msgspec.json.encode(field.default).decode().strip('"')
        for field in msgspec.structs.fields(Settings)
        if field.name not in GIVEN
    }
    assert rows == wanted


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_a_setting_comes_from_its_option_then_the_environment_then_its_default() -> None:
    given: dict[str, Any] = {"deployment": Deployment("d", "", {}, ()), "home": Path("h"), "test": "t"}
    environment = {"CONTENDER_PORT": "1", "CONTENDER_FSYNC": "true", "CONTENDER_WORKERS": "3", "CONTENDER_TEST": "x"}
    settings = Settings.from_environment(environment, **given, workers=2, port=None)
    assert (settings.port, settings.fsync, settings.workers, settings.max_rows) == (1, True, 2, 10_000)
    assert settings.test == "t"
    with pytest.raises(SettingsError, match="CONTENDER_MAX_ROWS='many'"):
        Settings.from_environment({"CONTENDER_MAX_ROWS": "many"}, **given)
