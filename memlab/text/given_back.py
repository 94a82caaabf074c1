"""What a tokenizer loses of a text, and what it costs to put it back.

A tokenizer may drop characters that it does not know, or fold them: small letters for capitals, one space for
several. Its tokens are then predicted with fewer bits than the text has. To divide these by the bytes of the
text, or by those of what is left of it, would give a figure of another text: a tokenizer that only knows the
letter e would have 0 bits per byte. So bits per byte are those of a code from which the whole text can be
made: the tokens, as the model predicts them, and a patch. The patch says of each byte whether it is kept,
lost or added, and spells the lost ones:

    bits = n * H(kept / n, lost / n, added / n) + 8 * lost,    n = kept + lost + added

with the entropy H in bits. No tokenizer gains by leaving bytes out, as it pays for them what a code without
any model pays. If nothing is lost or added, the patch has 0 bits; if it would have more than 8 for each byte
of the text, it spells the text instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_HALF = 256  # bytes of a text that are compared at once
_GIVEN = 3 * _HALF  # ... with so many of what is given back


@dataclass(frozen=True)
class Patch:
    """What makes a text of what is given back of it.

    Attributes:
        kept: bytes of the text that are given back, in the same order.
        lost: bytes of the text that are not.
        added: bytes that are given back and are not in the text.
    """

    kept: int = 0
    lost: int = 0
    added: int = 0

    def __add__(self, other: Patch) -> Patch:
        return Patch(self.kept + other.kept, self.lost + other.lost, self.added + other.added)

    @property
    def bits(self) -> float:
        """Length of its code; at most that of the text, spelled."""
        total = self.kept + self.lost + self.added
        places = sum(n * math.log2(total / n) for n in (self.kept, self.lost, self.added) if n)
        return min(places + 8 * self.lost, 8.0 * (self.kept + self.lost))


def patch(text: bytes, given: bytes) -> Patch:
    """How to come from what is given back to the text.

    The bytes that are kept are a common subsequence of both: the longest one if neither has more than 512
    bytes, or if bytes are only dropped, or only added. Of longer texts it is put together from windows that
    move along, and may be shorter, never longer.
    """
    kept = _kept(text, given)
    return Patch(kept, len(text) - kept, len(given) - kept)


def _kept(text: bytes, given: bytes) -> int:
    if text == given:
        return len(text)
    for whole, part in ((text, given), (given, text)):
        rest = iter(whole)
        if all(byte in rest for byte in part):
            return len(part)
    kept = i = j = 0
    while i < len(text) and j < len(given):
        same = _same(text, i, given, j)
        kept, i, j = kept + same, i + same, j + same
        # the first half of the window is settled, where it leaves the most to the second (Hirschberg 1975)
        near, far, window = text[i : i + _HALF], text[i + _HALF : i + 2 * _HALF], given[j : j + _GIVEN]
        before, after = _common(near, window), _common(far[::-1], window[::-1])[::-1]
        cut = max(range(len(window) + 1), key=lambda c: before[c] + after[c])
        kept, i, j = kept + before[cut], i + len(near), j + cut
    return kept


def _same(text: bytes, i: int, given: bytes, j: int) -> int:
    """How many bytes agree from two places on."""
    length, step = 0, 64
    while True:
        one, other = text[i + length : i + length + step], given[j + length : j + length + step]
        if one == other and len(one) == step:
            length, step = length + step, min(2 * step, 1 << 16)
        elif step > 64:
            step = 64
        else:
            pairs = zip(one, other, strict=False)
            return length + next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _common(pattern: bytes, text: bytes) -> list[int]:
    """Length of the longest common subsequence of a pattern and each beginning of a text, shortest first.

    A row of the usual table is an integer of one bit for each byte of the pattern (Hyyrö 2004).
    """
    places: dict[int, int] = {}
    for at, byte in enumerate(pattern):
        places[byte] = places.get(byte, 0) | 1 << at
    size, everywhere = len(pattern), (1 << len(pattern)) - 1
    row, lengths = everywhere, [0]
    for byte in text:
        new = row & places.get(byte, 0)
        row = (row + new | row - new) & everywhere
        lengths.append(size - row.bit_count())
    return lengths
