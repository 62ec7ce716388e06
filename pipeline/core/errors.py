"""The error that a user can mend, exit codes, and text that is safe to print."""

EXIT_DONE = 0


EXIT_USER = 2


EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped early with everything saved, run me again


def printable(text: str) -> str:
    """A file's name with bytes that aren't UTF-8 written %XX, so that it can be stored and shown anywhere."""
    if text.isascii():
        return text
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text)


class UserError(ValueError):
    """Something the user can put right. The message names the field, the value and the remedy."""
