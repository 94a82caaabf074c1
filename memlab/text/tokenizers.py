"""Bytes or subwords: how a document becomes token ids.

BEGIN stands before each document, and no text is encoded to it. It is one more id after a tokenizer's own,
except for the tokenizer of a pretrained model, which has such a token (`pretrained_tokenizer.py`).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memlab.errors import UserError, first_line
from memlab.files import expanded, why_no_file

Ids = NDArray[np.unsignedinteger[Any]]

BYTES = 256
# Between a character that is no space in any alphabet and a plain space, after which GPT-2's pattern starts
# again.
_WORD_END = re.compile(r"(?<=[!-~\w])(?=[ \t\n\r])")
_KNOWN_WORDS = 1 << 20  # a few hundred megabytes


class Tokenizer(Protocol):
    """Turns documents into ids and back.

    Attributes:
        size: number of its ids.
        begin: BEGIN; the next id, or one of its own.
        lossless: whether it is sure to give back every byte of every text.
        digest: changes with what it does; None = it is always the same.
    """

    size: int
    begin: int
    digest: str | None
    lossless: bool

    def encode(self, document: bytes) -> Ids:
        """Token ids [L], in the smallest integers that hold them.

        Raises:
            UserError: it cannot encode the text.
        """

    def given_back(self, document: bytes, ids: Ids) -> bytes:
        """What its token ids say of a document. A token for what is unknown says nothing."""

    def decode(self, ids: list[int]) -> str:
        """Text of some ids, for a person to read; half characters become U+FFFD."""

    def decode_each(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come, in pieces of whole characters."""


class ByteTokenizer:
    """Every byte is a token."""

    size = begin = BYTES
    lossless = True
    digest: str | None = None

    def encode(self, document: bytes) -> Ids:
        return np.frombuffer(document, dtype=np.uint8)

    def given_back(self, document: bytes, ids: Ids) -> bytes:
        return ids.tobytes()

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def decode_each(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            yield decoder.decode(bytes([i]))
        yield decoder.decode(b"", final=True)


class SavedTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    Special tokens are not added: documents are begun by BEGIN alone.

    Args:
        path: the file; ~ is the home directory.

    Raises:
        UserError: it is not there, or is not a tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        file = expanded(str(path), "task.tokenizer")
        self._read(f"task.tokenizer={path}", file)

    def _read(self, name: str, file: Path) -> None:
        import tokenizers

        self.name = name
        if (wrong := why_no_file(file)) is not None:
            raise UserError(f"{self.name}: {wrong}; bytes, bpe, or a saved tokenizer.json are possible")
        try:
            saved = file.read_text(encoding="utf-8-sig")
            self.tokenizer = tokenizers.Tokenizer.from_str(saved)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from None
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"{self.name} is not a tokenizer saved by the tokenizers library: {first_line(error)}"
            ) from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.begin = self.size
        self.dtype = np.uint16 if self.size <= 1 << 16 else np.uint32
        self.digest: str | None = hashlib.sha256(saved.encode()).hexdigest()
        content = json.loads(saved)
        self.known: dict[str, tuple[int, ...]] | None = {} if _keeps_words_apart(content) else None
        self.lossless = self.known is not None and _has_all_bytes(content)
        self.unknown = _unknown(content["model"])

    def encode(self, document: bytes) -> Ids:
        text = document.decode()
        try:
            if self.known is None:
                return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=self.dtype)
            return self._by_words(text, self.known)
        except Exception as error:  # the library raises plain Exception
            lacks = self.unknown is not None and self.tokenizer.token_to_id(self.unknown) is None
            reason = (
                f"its vocabulary lacks its own token for what it does not know, {self.unknown!r}; add it"
                if lacks
                else f"it cannot encode the text: {first_line(error)}"
            )
            raise UserError(f"{self.name}: {reason}") from None

    def _by_words(self, text: str, known: dict[str, tuple[int, ...]]) -> Ids:
        """Most words were seen before, and need not be merged again: twice to five times as fast."""
        words = _WORD_END.split(text)
        if len(known) > _KNOWN_WORDS:
            known.clear()
        new = list({word for word in words if word not in known})
        for word, encoding in zip(
            new, self.tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True
        ):
            known[word] = tuple(encoding.ids)
        return np.fromiter(chain.from_iterable(map(known.__getitem__, words)), dtype=self.dtype)

    def given_back(self, document: bytes, ids: Ids) -> bytes:
        said = self.decode(ids.tolist()).encode()
        if said == document or self.unknown is None or self.unknown.encode() in document:
            return said  # in the last case it may stand for itself
        return self.decode(ids[ids != self.tokenizer.token_to_id(self.unknown)].tolist()).encode()

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def decode_each(self, ids: Iterable[int]) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        stream, held = DecodeStream(skip_special_tokens=False), list[int]()
        for i in ids:
            held.append(i)
            if (text := stream.step(self.tokenizer, i)) is not None:
                held.clear()
                yield text
        yield self.decode(held)  # of a character that was not finished


def _keeps_words_apart(saved: dict[str, Any]) -> bool:
    """Whether no token can span `_WORD_END`, so that the words of a text can be encoded one by one:
    byte-level BPE as GPT-2's, of which SmolLM's also keeps digits apart.
    """
    first = saved.get("pre_tokenizer") or {}
    if first.get("type") == "Sequence" and [p["type"] for p in first["pretokenizers"]] == [
        "Digits",
        "ByteLevel",
    ]:
        first = first["pretokenizers"][1]
    byte_level = (
        first.get("type") == "ByteLevel"
        and first.get("use_regex") is True
        and first.get("add_prefix_space") is False
    )
    added = saved.get("added_tokens") or []
    plain = all(
        not t["lstrip"] and not t["rstrip"] and not t["single_word"] and not re.search(r"\s", t["content"])
        for t in added
    )
    model = saved["model"]
    return (
        byte_level
        and plain
        and saved.get("normalizer") is None
        and model.get("type") == "BPE"
        and not model.get("dropout")
    )


def _has_all_bytes(saved: dict[str, Any]) -> bool:
    """Whether such a tokenizer has a token for each byte, and decodes each into this byte."""
    from tokenizers import pre_tokenizers

    model = saved["model"]
    return (
        (saved.get("decoder") or {}).get("type") == "ByteLevel"
        and set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys()
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        # the decoder would take other characters for bytes
        and all(token["content"].isascii() for token in saved.get("added_tokens") or [])
    )


def _unknown(model: dict[str, Any]) -> str | None:
    """The token for what is not in the vocabulary, if the model has one."""
    if "unk_id" in model:  # Unigram
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")
