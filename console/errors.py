"""What a command tells its user instead of a traceback."""

from __future__ import annotations


class CommandError(Exception):
    """A command can't do what was asked; the message is one line that says why and what to do."""
