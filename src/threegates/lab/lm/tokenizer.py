"""A checkpoint's own tokenizer, as the tasks use it: plain text, no special tokens, a line an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from threegates.errors import CheckpointError

FILE = "tokenizer.json"
END = "\n"


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    newline : the id that ends an answer. size : ids there are, those of special tokens included.
    """

    backend: tokenizers.Tokenizer
    newline: int
    size: int

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """Read a checkpoint's tokenizer.json.

        Raises
        ------
        CheckpointError : there is none that the library reads, or a line's end is not one token.
        """
        path = folder / FILE
        return cls.of(_read(lambda: tokenizers.Tokenizer.from_file(str(path)), path), path)

    @classmethod
    def of_text(cls, content: str) -> Tokenizer:
        """The same from the content of a tokenizer.json."""
        return cls.of(_read(lambda: tokenizers.Tokenizer.from_str(content), FILE))

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, where: Path | str = FILE) -> Tokenizer:
        """A tokenizer of the library, told not to pad and not to cut; ``where`` is what errors name."""
        backend.no_padding()
        backend.no_truncation()
        ids = backend.encode(END, add_special_tokens=False).ids
        if len(ids) != 1:
            raise CheckpointError(
                "An answer ends at the end of its line, which is not one token here.",
                where=where,
                expected="one id for a newline",
                found=ids,
                remedy="Take a model whose tokenizer keeps line ends, such as a byte-level one.",
            )
        return cls(backend, ids[0], backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of a text; no special token is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens stay visible, since an answer that holds one is another answer."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def answer(self, ids: Sequence[int]) -> str:
        """Text of a response before its first newline, or all of it where there is none."""
        tokens = list(ids)
        end = tokens.index(self.newline) if self.newline in tokens else len(tokens)
        return self.decode(tokens[:end])


def _read(read: Callable[[], tokenizers.Tokenizer], where: Path | str) -> tokenizers.Tokenizer:
    # The library raises Exception itself, whatever the cause.
    try:
        return read()
    except Exception as error:
        raise CheckpointError(
            "The tokenizer cannot be read.",
            where=where,
            expected=f"a {FILE} of the library `tokenizers`",
            found=error,
            remedy="Save the model's fast tokenizer into the folder: tokenizer.save_pretrained(folder).",
        ) from None
