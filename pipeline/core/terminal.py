"""Output that is safe to look at: untrusted text can't control a terminal or run in a spreadsheet.

Names of classes, files and tar members are untrusted. ``cli.run`` wraps the standard streams of every command in
:class:`Escaping`, so that all printed and logged text is escaped; rich's tables and bars go through :func:`console`.
"""

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Control characters (C0 except tab and line feed, DEL, C1), line separators, characters that change the text direction
# (Trojan Source, CVE-2021-42574), and bytes that weren't UTF-8.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # first characters of formulas in spreadsheets (OWASP, "CSV Injection")


def visible(text: str) -> str:
    """``text`` with control characters written ``\\u001b``, as in JSON."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula is prefixed with an apostrophe."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


class Escaping:
    """A text stream that passes everything through :func:`visible` before writing it to ``stream``."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def escape_output() -> None:
    """Escape everything that this process prints from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Escaping):
            setattr(sys, name, Escaping(stream))


def console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """A rich console whose own control codes reach the terminal, while those in the text that it shows don't."""
    from rich.console import Console
    from rich.segment import Segment

    class Careful(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                segment if segment.control else segment._replace(text=visible(segment.text)) for segment in buffer
            )

    stream = sys.stderr if stderr else sys.stdout
    return Careful(file=stream.stream if isinstance(stream, Escaping) else stream, width=width)
