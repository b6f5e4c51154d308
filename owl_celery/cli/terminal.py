"""What others wrote, as text that cannot give commands to a terminal."""

from __future__ import annotations


def shown(text: str, keep: str = "\n") -> str:
    """Replace what is not printable, but for the characters to keep.

    Examples
    --------
    >>> shown("gpu.a.0\\x1b[2J")
    'gpu.a.0\ufffd[2J'

    """
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
