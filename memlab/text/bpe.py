"""A byte-level BPE that is trained on the training split, once, and kept."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memlab.errors import UserError
from memlab.files import write_whole
from memlab.text.corpus import Corpus
from memlab.text.files import File
from memlab.text.tokenizers import SavedTokenizer

# of text that a BPE is trained on: more hardly moves the merges, and counting them is held in memory
TRAINING_BYTES = 100 << 20
# Bytes of a run without a blank, or of blanks, that are looked at in one piece: in a piece of n bytes a merge
# takes n steps. Text that people write has no run of this length.
_LONGEST_RUN = 4096
_EVERY = 15.0  # seconds between lines about a long training
# Goes into the key of the cache; changes with `_train`. (The limit of runs came later and did not change it:
# tokenizers that were trained on longer runs stay with the models that were trained with them.)
_RECIPE = "1"


def bpe(corpus: Corpus, size: int, cache: Path) -> SavedTokenizer:
    """A byte-level BPE of the training split, from the cache or trained now.

    Args:
        size: the number of its ids.
        cache: directory; a tokenizer is found again as long as the training files keep names, sizes and
            times.

    Raises:
        UserError: the text has too few different pieces, or a file cannot be read or written.
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
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(_LONGEST_RUN)])
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
    with _progress(corpus) as pieces:
        tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.pre_tokenizer = words
    if (yielded := tokenizer.get_vocab_size()) < size:
        raise UserError(
            f"task.bpe_size={size}: the training text has only {yielded} different pieces; use at most "
            f"{yielded}"
        )
    return str(tokenizer.to_str())


@contextmanager
def _progress(corpus: Corpus) -> Iterator[Iterator[str]]:
    """The text to train on, while now and then a line says how far the training is.

    On a terminal the library draws bars of its own.
    """
    total = min(TRAINING_BYTES, sum(file.size for file in corpus.files["train"]))
    read, done, began = 0, threading.Event(), time.monotonic()

    def pieces() -> Iterator[str]:
        nonlocal read
        for piece, size in _pieces(corpus):
            read += size
            yield piece

    def tell() -> None:
        while not done.wait(_EVERY):
            whole = max(read, total)  # a compressed split holds more than the size of its files
            print(
                f"memlab: still training the tokenizer, {time.monotonic() - began:.0f} s so far; "
                f"{read / 1e6:.1f} of {whole / 1e6:.1f} MB of text read",
                file=sys.stderr,
                flush=True,
            )

    teller = None if sys.stderr.isatty() else threading.Thread(target=tell, daemon=True)
    if teller is not None:
        teller.start()
    try:
        yield pieces()
    finally:
        done.set()
        if teller is not None:
            teller.join()


def _pieces(corpus: Corpus) -> Iterator[tuple[str, int]]:
    """The beginning of the training split, whatever order it will be read in, and the bytes of each piece."""
    left = TRAINING_BYTES
    for file in corpus.files["train"]:
        for document in corpus.documents(file):
            document = document[:left]
            left -= len(document)
            yield document.decode(errors="ignore"), len(document)
            if left <= 0:
                return
