"""CLIP's byte-pair encoding (Radford et al., ICML 2021), token for token as open_clip has it.

The `tokenizers` library encodes; here is what CLIP does to a text before, and which table it reads.
"""

import functools
import gzip
import html
import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

# One merge a line, of CLIP's published vocabulary those that CLIP uses; see NOTICE.
MERGES = Path(__file__).parent / "clip_merges.txt.gz"
START, END = "<start_of_text>", "<end_of_text>"
# U+0345 is neither a letter nor anything else where case is ignored, as CLIP does, and is lost.
# Characters newer than the Unicode tables of `tokenizers` count as no letters.
MARKS = rf"(?i:{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d)"
PIECES = rf"{MARKS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}\x{{345}}]+"
ASCII_PIECES = re.compile(rf"{MARKS}|[a-z]+|[0-9]|[^\sa-z0-9]+")
REMEMBERED = 1_000_000  # pieces


class Tokenizer:
    """texts → int32 [n context]: start, tokens, end, then zeros; longer texts lose their rest.

    `size` is the number of tokens, the last of which ends a text. Pickles, for worker processes.
    """

    def __init__(self, context: int = 77):
        if context < 3:
            raise ValueError(f"context is {context}; expected 3 or more: start, a token, end")
        self.context = context
        vocabulary = _vocabulary()
        self.names, self.size = list(vocabulary), len(vocabulary)
        self.start, self.end = vocabulary[START], vocabulary[END]
        self.encoding = models.BPE(vocabulary, merges(), end_of_word_suffix="</w>")
        self.split = pre_tokenizers.Split(tokenizers.Regex(PIECES), "removed", invert=True)
        self.known: dict[str, list[int]] = {}

    def __reduce__(self):
        return Tokenizer, (self.context,)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Raises TypeError, one line, for what is no sequence of texts."""
        if isinstance(texts, str):
            raise TypeError("texts are one str; expected a list of them")
        tokens = np.zeros((len(texts), self.context), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            if not isinstance(text, str):
                raise TypeError(f"a text is {text!r}; expected a str")
            ids = [self.start, *self.encode(text)[: self.context - 2], self.end]
            row[: len(ids)] = ids
        return tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of one text, without its ends."""
        text = clean(text)
        if text.isascii():
            pieces = ASCII_PIECES.findall(text)
        else:
            pieces = [piece for piece, _ in self.split.pre_tokenize_str(text)]
        known, ids = self.known, []
        for piece in pieces:
            # The same words come again and again, and a dict is faster than any encoder.
            ids += known[piece] if piece in known else self._learn(piece)
        return ids

    def _learn(self, piece: str) -> list[int]:
        if len(self.known) >= REMEMBERED:
            self.known = {}
        if piece in (START, END):  # CLIP's own marks in a text stand for their tokens
            found = [self.start if piece == START else self.end]
        else:
            letters = "".join(ALPHABET[byte] for byte in piece.encode())
            found = [token.id for token in self.encoding.tokenize(letters)]
        self.known[piece] = found
        return found

    def decode(self, tokens) -> str:
        """The text of one row of tokens, without its ends: lower case, a space after each word."""
        ids = [int(one) for one in tokens]
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        letters = "".join(self.names[one] for one in ids if one != self.start)
        text = bytes(BYTES[letter] for letter in letters).decode(errors="replace")
        return text.replace("</w>", " ")


@functools.lru_cache(maxsize=4)
def clip_tokenizer(context: int = 77) -> Tokenizer:
    """CLIP's tokenizer for texts of up to `context` tokens, its ends included."""
    return Tokenizer(context)


def clean(text: str) -> str:
    """What CLIP encodes of a text: mended Unicode, no HTML entities, single spaces, lower case."""
    # Of these `ftfy` and `html` change nothing, and they take longer than the encoding.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def merges() -> list[tuple[str, str]]:
    """The pairs that are joined, in this order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    return [(first, second) for first, _, second in (line.partition(" ") for line in lines)]


def _vocabulary() -> dict[str, int]:
    alphabet = [ALPHABET[byte] for byte in sorted(range(256), key=lambda b: ord(ALPHABET[b]))]
    names = [*alphabet, *(f"{one}</w>" for one in alphabet)]
    names += [first + second for first, second in merges()] + [START, END]
    return {name: i for i, name in enumerate(names)}


def _alphabet() -> dict[int, str]:
    """byte → the character that stands for it: printable Latin-1 itself, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


ALPHABET = _alphabet()
BYTES = {letter: byte for byte, letter in ALPHABET.items()}
