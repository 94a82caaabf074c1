"""Bytes or subwords: how a document becomes token ids.

After a tokenizer's own ids comes one more, BEGIN, which stands before each document; no text is encoded to
it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memlab.errors import UserError, first_line
from memlab.files import write_whole
from memlab.text.corpus import Corpus
from memlab.text.files import File

Ids = NDArray[np.unsignedinteger[Any]]

BYTES = 256
# of text that a BPE is trained on: more hardly moves the merges, and counting them is held in memory
TRAINING_BYTES = 100 << 20
# Between a character that is no space in any alphabet and a plain space, after which GPT-2's pattern begins
# anew.
_WORD_END = re.compile(r"(?<=[!-~\w])(?=[ \t\n\r])")
_KNOWN_WORDS = 1 << 20  # a few hundred megabytes
_RECIPE = "1"  # goes into the key of the cache; changes with `_train`


class Tokenizer(Protocol):
    """Turns documents into ids and back.

    Attributes:
        size: number of its ids; BEGIN is the next.
    """

    size: int

    def encode(self, document: bytes) -> Ids:
        """Token ids [L], in the smallest integers that hold them."""

    def decode(self, ids: list[int]) -> str:
        """Text of some ids, for a person to read; half characters become U+FFFD."""

    def decode_each(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come, in pieces of whole characters."""


class ByteTokenizer:
    """Every byte is a token."""

    size = BYTES

    def encode(self, document: bytes) -> Ids:
        return np.frombuffer(document, dtype=np.uint8)

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
        import tokenizers

        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(
                f"task.tokenizer={path}: there is no such file; bytes, bpe, or a saved tokenizer.json are "
                "possible"
            )
        try:
            saved = file.read_text(encoding="utf-8")
            self.tokenizer = tokenizers.Tokenizer.from_str(saved)
        except Exception as error:  # the library raises plain Exception
            reason = first_line(error)
            raise UserError(
                f"task.tokenizer={path} is not a tokenizer saved by the tokenizers library: {reason}"
            ) from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.dtype = np.uint16 if self.size <= 1 << 16 else np.uint32
        self.known: dict[str, tuple[int, ...]] | None = {} if _keeps_words_apart(json.loads(saved)) else None

    def encode(self, document: bytes) -> Ids:
        text = document.decode()
        if self.known is None:
            return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=self.dtype)
        # most were seen before, and need not be merged again: twice to five times as fast
        words = _WORD_END.split(text)
        if len(self.known) > _KNOWN_WORDS:
            self.known.clear()
        new = list({word for word in words if word not in self.known})
        for word, encoding in zip(
            new, self.tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True
        ):
            self.known[word] = tuple(encoding.ids)
        return np.fromiter(chain.from_iterable(map(self.known.__getitem__, words)), dtype=self.dtype)

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
    byte-level BPE as GPT-2's.
    """
    first = saved.get("pre_tokenizer") or {}
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


def bpe(corpus: Corpus, size: int, cache: Path) -> SavedTokenizer:
    """A byte-level BPE of the training split, from the cache or trained now.

    Args:
        size: ids that it shall have.
        cache: directory; a tokenizer is found again as long as the training files keep names, sizes and
            times.

    Raises:
        UserError: the text has not so many different pieces, or a file cannot be read or written.
    """
    from filelock import FileLock

    target = cache / "tokenizers" / f"bpe-{size}-{_key(corpus.files['train'], size)}" / "tokenizer.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target.parent}.lock"):  # of several processes that begin at once, one trains
            if not target.is_file():
                write_whole(target, _train(corpus, size))
    except OSError as error:
        raise UserError(f"task.cache_dir: {target} cannot be written: {error.strerror}") from None
    return SavedTokenizer(target)


def _key(files: tuple[File, ...], size: int) -> str:
    content = json.dumps(
        [_RECIPE, size, TRAINING_BYTES, [(f.name, f.size, f.stamp, f.begin, f.end) for f in files]]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _train(corpus: Corpus, size: int) -> str:
    """The trained tokenizer as JSON. The same text gives the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=sys.stderr.isatty(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
    )
    print(
        f"memlab: training a tokenizer of {size} ids on the training split, once", file=sys.stderr, flush=True
    )
    tokenizer.train_from_iterator(_pieces(corpus), trainer)
    if (yielded := tokenizer.get_vocab_size()) < size:
        raise UserError(
            f"task.bpe_size={size}: the training text has only {yielded} different pieces; use at most "
            f"{yielded}"
        )
    return str(tokenizer.to_str())


def _pieces(corpus: Corpus) -> Iterator[str]:
    """The beginning of the training split, whatever order it will be read in."""
    left = TRAINING_BYTES
    for file in corpus.files["train"]:
        for document in corpus.documents(file):
            document = document[:left]
            left -= len(document)
            yield document.decode(errors="ignore")
            if left <= 0:
                return
