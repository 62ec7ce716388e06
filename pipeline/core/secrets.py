"""Text with passwords, tokens and keys hidden."""

import re

_HIDDEN = "<hidden>"
_SECRETS = (
    re.compile(r"(?P<keep>\w+://)[^/\s@]+@"),  # user:password@ in a URL
    re.compile(
        r"(?P<keep>[\w.-]*(?:passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key|credential)[\w.-]*[\"']?\s*[=:\s]\s*)"
        r"(?:\"[^\"]*\"|'[^']*'|\S+)",
        re.IGNORECASE,
    ),
)


def without_secrets(text: str) -> str:
    """``text`` with passwords in URLs and values of password-like names replaced by ``<hidden>``."""
    for pattern in _SECRETS:
        at = "@" if pattern is _SECRETS[0] else ""
        text = pattern.sub(lambda match, at=at: f"{match['keep']}{_HIDDEN}{at}", text)  # type: ignore[misc]
    return text


def secrets_in(text: str) -> list[str]:
    """Whether :func:`without_secrets` would hide something."""
    return [match[0].removeprefix(match["keep"]) for pattern in _SECRETS for match in pattern.finditer(text)]
