"""The error that a user can fix, exit codes, and text that is safe to print."""

import re

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
EXIT_DONE = 0
EXIT_USER = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped early with everything saved; run again to continue


def printable(text: str) -> str:
    """A file's name to store and show: control characters and bytes that aren't UTF-8 are written %XX."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_percent, text)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))


class UserError(ValueError):
    """An error that the user can fix. The message names the field, the value and the remedy.

    It is one line: line breaks, for instance in another program's message, become spaces. Write text from files and
    the command line with repr, which escapes line breaks and control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
