"""The error that a user can mend, exit codes, and text that is safe to print."""

import re

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
EXIT_DONE = 0
EXIT_USER = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped early with everything saved, run me again


def printable(text: str) -> str:
    """A file's name with bytes that aren't UTF-8 and control characters written %XX: to be stored and shown."""
    return text if text.isprintable() else _UNPRINTABLE.sub(_percent, text)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))


class UserError(ValueError):
    """Something the user can put right. The message names the field, the value and the remedy.

    It is one line: a line break that another program's message or a file brought along becomes a blank. What comes
    from a file or the command line is best written by repr, which shows line breaks and control characters as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
