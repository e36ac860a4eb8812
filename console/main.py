"""The program `contender`. `executor` starts without the command-line framework, so that pods and tests start fast."""

from __future__ import annotations

import os
import sys


def main() -> int | None:
    """Run the command of the arguments. The result is the exit code; None means 0."""
    if sys.argv[1:2] == ["executor"]:
        from console.executor import main as executor

        return executor(sys.argv[2:])
    from console import cli

    cli.configure_logging()
    try:
        cli.app()
    except cli.ERRORS as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the program's one way to speak of an error
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return None
