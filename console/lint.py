"""`contender lint`: everything that is wrong with a file of ours, before anybody runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from experiment.declaration import DeclarationError, parse_declaration
from router.resource import KIND
from serving.campaigns import CampaignsError, parse_rules
from serving.errors import GraphError
from serving.graph import load_deployment


def faults(path: Path) -> list[str]:
    """Return a line for each fault, beginning with the file's name. Documents of other kinds are not judged."""
    try:
        text = path.read_text(encoding="utf-8")
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"{path}: {error}"]
    found: list[str] = []
    for document in documents:
        found += _document_faults(path, text, document)
    return found or ([] if documents else [f"{path}: empty"])


def _document_faults(path: Path, text: str, document: Any) -> list[str]:
    kind = document.get("kind") if isinstance(document, dict) else None
    try:
        if kind == KIND:
            parse_declaration(document, str(path))
        elif kind == "SeldonDeployment":
            load_deployment(path)
        elif isinstance(document, dict) and "campaigns" in document:
            parse_rules(text, str(path))
        elif kind is None:
            return [f"{path}: neither a manifest (it has no kind) nor campaign rules"]
    except (GraphError, DeclarationError, CampaignsError) as error:
        return str(error).splitlines()
    return []
