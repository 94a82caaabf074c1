"""Small tokenizers like those of pretrained models, made of a few sentences, saved as models have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from memlab.tasks.filler import FILLER_WORDS
from memlab.tasks.passages import REPEATED

TEXT = [
    *REPEATED,
    "The pass key is hidden in the following text. Remember it. What is the pass key?",
    "Some things are noted. The number of the castle is 1234567890. What is the word of the violin?",
    "Mary went to the garden. John has the football. Where is Daniel? Sandra is in the office, the kitchen,",
    "the bathroom, the bedroom or the hallway. He moved, she journeyed; they found it. Isn't it the apple?",
    *(f"The {' '.join(FILLER_WORDS[i : i + 4])}." for i in range(0, len(FILLER_WORDS), 4)),
]
LETTERS = " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?:'")
NUMBERS = [LETTERS, LETTERS.replace(" ", ""), *(f" {n * 7919 % 100_000:05}" for n in range(400))]


def gpt2() -> tokenizers.Tokenizer:
    """Byte-level BPE, numbers in tokens of several digits."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=620, show_progress=False, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    made.train_from_iterator(TEXT + NUMBERS, trainer)
    return made


def smollm() -> tokenizers.Tokenizer:
    """The same with every digit apart."""
    made = gpt2()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return made


def llama(apart: bool = True) -> tokenizers.Tokenizer:
    """Pieces with a mark for the space before a word, and a token that begins every text.

    Args:
        apart: whether no piece has letters of two words, as with all that people use.
    """
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=450, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"]
    )
    if apart:
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.train_from_iterator(TEXT + NUMBERS, trainer)
    made.pre_tokenizer = None
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def joined() -> tokenizers.Tokenizer:
    """Pieces across words, full stops and spaces: no part of a text is encoded as it is in the whole."""
    return llama(apart=False)


def bert() -> tokenizers.Tokenizer:
    """Pieces of words in small letters, which do not give a text back."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        TEXT + NUMBERS, trainers.WordPieceTrainer(vocab_size=420, show_progress=False, special_tokens=special)
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(length=9)
    return made


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": gpt2,
    "smollm": smollm,
    "llama": llama,
    "joined": joined,
    "bert": bert,
}


def directory(place: Path, made: tokenizers.Tokenizer, **config: Any) -> str:
    """A model's directory with this tokenizer."""
    place.mkdir(parents=True, exist_ok=True)
    made.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(place)
