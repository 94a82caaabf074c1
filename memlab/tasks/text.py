"""Text: each batch row reads whole documents, one after another, and predicts every token.

The text is a directory of files (plain text, lines of JSON, parquet) or a dataset on the Hugging Face hub;
`memlab.text.streams` has the order in which it is read. Validation and test read the beginning of each
document, or all of it, once.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from memlab import ram
from memlab.bounds import Positive
from memlab.errors import ConfigError, UserError
from memlab.splits import Held
from memlab.tasks.base import Task
from memlab.text import corpus as corpora
from memlab.text import pretrained_tokenizer
from memlab.text.amounts import Amounts, count
from memlab.text.batches import StreamBatch
from memlab.text.bpe import bpe
from memlab.text.corpus import Corpus
from memlab.text.fingerprint import fingerprints
from memlab.text.streams import TrainingReader, evaluation_batches
from memlab.text.tokenizers import BYTES, ByteTokenizer, Ids, Tokenizer

# tokens of a document after which the size of the memory is measured; more would take longer than they are
# worth
_WEIGHED_TOKENS = 65_536
# a training split up to this size is read once before the run, so that a broken file is reported at the start
_CHECKED_BYTES = 64 << 20
_OWN = ("bytes", "bpe")  # tokenizers that are no files
_ROW_BYTES = 1000  # that a reader holds for each batch row, in addition to its tokens


class TextTask(Task):
    """Any text. `prepare` reads and checks it.

    Args:
        data_dir: directory with the splits, or None.
        source: dataset on the hub, `owner/name`, if there is no data_dir; or None.
        source_folder: the folder of the dataset to read; None = all.
        source_revision: commit, branch or tag of the dataset; None = its main branch as it is now.
        text_column: key of JSON lines and column of parquet files with the text.
        tokenizer: `bytes`, `bpe` (trained on the training split and cached), the path of a saved
            `tokenizer.json`, or a pretrained model's: its directory, .gguf file or id on the hub.
        bpe_size: ids of a trained BPE, without BEGIN.
        cache_dir: for trained tokenizers; the environment variable MEMLAB_CACHE takes precedence.
        segment_length: N, tokens in a segment.
        num_segments: S, segments of a batch row in one training step.
        batch_size: R, batch rows of a training step, over all processes.
        validation_documents, test_documents: maximum number of documents, the first of the split; None = all.
        validation_bytes, test_bytes: maximum number of bytes of each document, cut between characters; None =
            all.
        workers: processes that read and tokenize for the training; 0 = the training does it itself.

    Raises:
        ConfigError: the values do not go together.
    """

    trained_by: ClassVar[str] = "text"

    def __init__(
        self,
        *,
        data_dir: str | None,
        source: str | None,
        source_folder: str | None,
        text_column: str,
        tokenizer: str,
        bpe_size: Positive,
        cache_dir: str,
        segment_length: Positive,
        num_segments: Positive,
        batch_size: Positive,
        validation_documents: Positive | None,
        test_documents: Positive | None,
        validation_bytes: Positive | None,
        test_bytes: Positive | None,
        workers: int,
        source_revision: str | None = None,
    ) -> None:
        ram.check_batch(batch_size, segment_length * num_segments, _ROW_BYTES)
        if bpe_size <= BYTES:
            raise ConfigError(
                f"task.bpe_size={bpe_size}: the {BYTES} bytes are ids of their own, so it is at least "
                f"{BYTES + 1}"
            )
        if tokenizer not in _OWN:
            pretrained_tokenizer.check(tokenizer, _OWN)
        if not 0 <= workers <= batch_size:
            raise ConfigError(
                f"task.workers={workers}: from 0 to task.batch_size={batch_size}, as a worker makes whole "
                "rows"
            )
        self.data_dir, self.source, self.source_folder, self.text_column = (
            data_dir,
            source,
            source_folder,
            text_column,
        )
        self.source_revision = source_revision
        self.tokenizer_name, self.bpe_size, self.cache_dir = tokenizer, bpe_size, cache_dir
        self.segment_lengths = (segment_length,) * num_segments
        self.batch_size = batch_size
        self.documents = {"validation": validation_documents, "test": test_documents}
        self.bytes = {"validation": validation_bytes, "test": test_bytes}
        self.workers = workers
        self.tokenizer: Tokenizer
        self.corpus: Corpus
        self._texts: dict[Held, list[bytes]] = {}
        self._ids: dict[Held, list[Ids]] = {}
        self._amounts: dict[Held, Amounts] = {}

    def prepare(self) -> None:
        """Find the files, read and check validation and test, and load the tokenizer or train it.

        Raises:
            UserError: the files or the hub cannot be read, a split is missing or broken, or the tokenizer
                cannot be made.
        """
        self.corpus = self._find()
        for split in ("validation", "test"):
            self._texts[split] = self._read(split)
        self._ids, self._amounts = {}, {}
        training = self.corpus.files["train"]
        if sum(file.size for file in training) <= _CHECKED_BYTES and not any(
            # lists, so that each file is read to its end
            [any([len(d) for d in self.corpus.documents(file)]) for file in training]
        ):
            raise UserError(
                f"the training split has no text: all documents of its {len(training)} files are empty"
            )
        if all(map(self.corpus.is_one_document, training)) and len(training) < self.batch_size:
            print(
                f"memlab: warning: task.batch_size={self.batch_size} rows and only {len(training)} training "
                "documents: some rows read the same text at the same time; give more files, or fewer rows",
                file=sys.stderr,
            )
        self.open_tokenizer()
        if not self.tokenizer.lossless and (read := self.amounts("validation")).lost_bytes:
            print(
                f"memlab: warning: task.tokenizer={self.tokenizer_name} does not give back "
                f"{read.lost_bytes:,} of the {read.bytes:,} bytes of the validation split "
                f"({read.lost_bytes / read.bytes:.1%}); bits per byte count what it takes to put them back",
                file=sys.stderr,
            )

    def open_tokenizer(self) -> None:
        """Load the tokenizer, or train it on a corpus that has been found; `prepare` includes it. Without a
        corpus this is enough to generate text.

        Raises:
            UserError: it cannot be made.
        """
        self.tokenizer = self._tokenizer()
        self.vocab_size = max(self.tokenizer.size, self.begin + 1)

    @property
    def begin(self) -> int:
        """BEGIN, the id before a document."""
        return self.tokenizer.begin

    def at(self, num_segments: int) -> Self:
        """The same text, with another number of segments in a training step.

        Shares everything that was prepared.
        """
        other = copy.copy(self)
        other.segment_lengths = self.segment_lengths[:1] * num_segments
        return other

    def training(self, seed: int, rows: range, position: list[Any] | None = None) -> Iterator[StreamBatch]:
        """The endless training batches.

        Args:
            seed: draws the order of the files.
            rows: which of the `batch_size` rows to read.
            position: of the batch to continue after, for the same rows; None = from the beginning.

        Raises:
            UserError: a file cannot be read.
        """
        return TrainingReader(self.corpus, self.tokenizer, self.batch_size, seed, rows, position).batches(
            self.segment_lengths
        )

    def evaluation(self, split: Held, rows: range) -> Iterator[StreamBatch]:
        """Every document of the (limited) split once.

        The number of batches does not depend on which `rows` of the `evaluation_rows` are read.
        """
        return evaluation_batches(
            self._encoded(split), rows, self.evaluation_rows(split), self.segment_lengths, self.begin
        )

    def evaluation_rows(self, split: Held) -> int:
        """Batch rows of an evaluation, over all processes."""
        return min(self.batch_size, len(self._texts[split]))

    def test_documents(self) -> list[Ids]:
        """Token ids of the documents that the test reads."""
        return self._encoded("test")

    def amounts(self, split: Held) -> Amounts:
        """What `evaluation` reads."""
        if split not in self._amounts:
            self._amounts[split] = count(self._texts[split], self._encoded(split), self.tokenizer)
        return self._amounts[split]

    def data(self) -> dict[str, Any]:
        files = [file for split in self.corpus.files.values() for file in split]
        return {
            "files": fingerprints(files),
            "revision": next((file.stamp for file in files if file.on_hub), None),
            "tokenizer": self.tokenizer.digest,
        }

    def typical_segments(self) -> tuple[int, ...]:
        """Those of the longest test document, up to `_WEIGHED_TOKENS`."""
        length = self.segment_lengths[0]
        tokens = min(max(map(len, self._encoded("test"))), _WEIGHED_TOKENS)
        return (length,) * -(-tokens // length)

    def word(self, token: int) -> str:
        """A token as text."""
        return "BEGIN" if token == self.begin else self.tokenizer.decode([token])

    def _find(self) -> Corpus:
        """Where the documents are."""
        if self.data_dir is not None:
            return Corpus(corpora.in_directory(self.data_dir), self.text_column)
        layout = (
            "task.data_dir=DIR with train/, validation/ and test/, in them .txt, .tex, .jsonl or .parquet "
            "files"
        )
        if self.source is None:
            raise UserError(f"task.data_dir is null: say where the text is, {layout}")
        page = f"https://huggingface.co/datasets/{self.source}"
        return Corpus(
            corpora.on_hub(
                self.source,
                self.source_folder,
                f"Download {page} where there is a network, and give {layout}",
                self.source_revision,
            ),
            self.text_column,
        )

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer_name == "bytes":
            return ByteTokenizer()
        if self.tokenizer_name == "bpe":
            if not hasattr(self, "corpus"):
                self.corpus = self._find()
            return bpe(self.corpus, self.bpe_size, corpora.cache_directory(self.cache_dir))
        return pretrained_tokenizer.opened(self.tokenizer_name, corpora.cache_directory(self.cache_dir))

    def _read(self, split: Held) -> list[bytes]:
        """The documents that an evaluation reads, shortened; empty ones are left out."""
        most, size = self.documents[split], self.bytes[split]
        texts: list[bytes] = []
        for file in self.corpus.files[split]:
            for document in self.corpus.documents(file):
                if len(texts) == most:
                    return texts
                if cut := shortened(document, size):
                    texts.append(cut)
        if not texts:
            raise UserError(
                f"the {split} split has no text: all documents of its {len(self.corpus.files[split])} files "
                "are empty"
            )
        if not any(text.decode(errors="replace").split() for text in texts):
            raise UserError(f"the {split} split has no text: what is read of it is white space only")
        return texts

    def _encoded(self, split: Held) -> list[Ids]:
        """Token ids of an evaluation's documents, cached for repeated validations."""
        if split not in self._ids:
            ids = [self.tokenizer.encode(text) for text in self._texts[split]]
            if not any(map(len, ids)):
                raise UserError(
                    f"task.tokenizer={self.tokenizer_name} makes no token of the {split} split: its "
                    "vocabulary has nothing of this text"
                )
            self._ids[split] = ids
        return self._ids[split]


def shortened(document: bytes, size: int | None) -> bytes:
    """At most the first `size` bytes, without a part of a character at the cut; None = all."""
    if size is None or len(document) <= size:
        return document
    while size and document[size] & 0xC0 == 0x80:  # a byte that continues a character
        size -= 1
    return document[:size]
