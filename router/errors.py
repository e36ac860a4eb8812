"""What can be wrong with a customer key or an epoch. The packages above map these to HTTP or to an exit code."""

from __future__ import annotations


class RouterError(ValueError):
    """Base of the tree."""


class InvalidKey(RouterError):
    """A customer key that has no canonical form; the message names the field, the row where there is one, and the value."""


class InvalidEpoch(RouterError):
    """An epoch record that must not be used; the message names the field and what would be right."""


class ClusterError(RouterError):
    """A cluster's API could not be asked, or refused what was asked; the message is one line that says why."""


class ChangeConflict(ClusterError):
    """Somebody else changed the Experiment first. Nothing was changed."""


class InvalidSecret(RouterError):
    """The secret of the customer keys is missing, unreadable or too short; the message names the file."""


def shown(value: object) -> str:
    """Return a value for a message: its first 80 characters, even where it is nested deeper than Python can write."""
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
