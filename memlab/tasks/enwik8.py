"""enwik8 (Hutter prize): the first 100,000,000 bytes of a dump of the English Wikipedia, including markup.

By convention, the first 90 million bytes are for training, the next 5 for validation, the last 5 for test,
and results are bits per byte (often called bits per character). Validation and test are one document each.
Training is cut into parts, which are read in an order drawn from the seed: otherwise all batch rows would
read the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from memlab.bounds import Positive
from memlab.errors import UserError
from memlab.splits import Split
from memlab.tasks.text import TextTask
from memlab.text.corpus import Corpus
from memlab.text.files import File

BORDERS: dict[Split, tuple[int, int]] = {
    "train": (0, 90_000_000),
    "validation": (90_000_000, 95_000_000),
    "test": (95_000_000, 100_000_000),
}


class Enwik8(TextTask):
    """enwik8 as bytes.

    Args:
        data_dir: directory with the file `enwik8`.
        part_bytes: length of a document of the training split. The other arguments are `TextTask`'s.
    """

    def __init__(
        self,
        *,
        data_dir: str | None,
        part_bytes: Positive,
        segment_length: Positive,
        num_segments: Positive,
        batch_size: Positive,
        validation_bytes: Positive | None,
        test_bytes: Positive | None,
        workers: int,
    ) -> None:
        super().__init__(
            data_dir=data_dir,
            source=None,
            source_folder=None,
            text_column="text",
            tokenizer="bytes",
            bpe_size=8192,
            cache_dir="",
            segment_length=segment_length,
            num_segments=num_segments,
            batch_size=batch_size,
            validation_documents=None,
            test_documents=None,
            validation_bytes=validation_bytes,
            test_bytes=test_bytes,
            workers=workers,
        )
        self.part_bytes = part_bytes

    def _find(self) -> Corpus:
        advice = (
            "download https://mattmahoney.net/dc/enwik8.zip, unpack it, and give task.data_dir=DIR with "
            "DIR/enwik8"
        )
        if self.data_dir is None:
            raise UserError(f"task.data_dir is null: {advice}")
        path = Path(self.data_dir).expanduser() / "enwik8"
        if not path.is_file():
            raise UserError(f"task.data_dir={self.data_dir} has no file enwik8; {advice}")
        stat = path.stat()
        if stat.st_size != BORDERS["test"][1]:
            raise UserError(f"{path} has {stat.st_size:,} bytes, enwik8 has {BORDERS['test'][1]:,}; {advice}")

        def parts(begin: int, end: int, size: int) -> tuple[File, ...]:
            starts = range(begin, end, size)
            return tuple(
                File(str(path), "raw", stat.st_size, str(stat.st_mtime_ns), at, min(at + size, end))
                for at in starts
            )

        sizes = {split: end - begin for split, (begin, end) in BORDERS.items()} | {"train": self.part_bytes}
        return Corpus(
            {split: parts(begin, end, sizes[split]) for split, (begin, end) in BORDERS.items()},
            self.text_column,
        )
