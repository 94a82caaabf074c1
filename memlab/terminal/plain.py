"""Text of others as plain text: a terminal does not obey it, and Markdown does not interpret it."""

from __future__ import annotations

import re

# Control characters but for tab and newline, what changes the direction of writing, ends of lines that are no
# newline, and halves of surrogate pairs.
_OBEYED = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    """Text in which every character that a terminal may obey is written as an escape, such as `\\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """One line of text, escaped so that Markdown makes no table cell, tag, link or picture of it."""
    for sign, plain in (("|", "\\|"), ("<", "&lt;"), ("](", "]\\("), ("\n", " ")):
        text = text.replace(sign, plain)
    return printable(text)
