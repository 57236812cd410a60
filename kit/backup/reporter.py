"""How a process for backups reports: lines for the log, warnings for the dashboard, and the error that ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kit.errors import KitError


@dataclass(frozen=True)
class Reporter:
    """Where the reports of a process go.

    Attributes:
        say: Prints one line.
        keep: Keeps a warning, message and hint, for the launcher.
        end: Keeps the error that ends the process, for the launcher.
    """

    say: Callable[[str], None]
    keep: Callable[[str, str], None] = lambda message, hint: None
    end: Callable[[KitError], None] = lambda error: None

    def warn(self, message: str, hint: str = "") -> int:
        """Report what is wrong, though training goes on; return the exit code for that."""
        self.say(f"WARNING: {message} {hint}".rstrip())
        self.keep(message, hint)
        return 0

    def fail(self, error: KitError) -> int:
        """Report what training cannot start with; return the exit code for that."""
        self.say(f"error: {error}")
        self.end(error)
        return error.exit_code
