"""Texts as a model takes them: tokens, and the prompts and class names of zero-shot tests."""

from noisy_fm.texts.tokenizer import Tokenizer, clip_tokenizer

__all__ = ["Tokenizer", "clip_tokenizer"]
