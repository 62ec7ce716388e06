"""Formatting durations and sizes."""


def duration(seconds: float) -> str:
    """``1d 02:03:04``, ``02:03:04`` or ``03:04``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{minute:02d}:{second:02d}"
    if hours:
        text = f"{hour:02d}:{text}"
    return f"{days}d {text}" if days else text


def size(count: int) -> str:
    """Bytes: ``2.34 GB`` or ``23.4 MB``."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
