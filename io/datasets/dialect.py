"""How a text file writes rows: delimiter, quotes, comments, encoding."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass

_NAMED: Mapping[str, str] = {
    "\\t": "\t",
    "tab": "\t",
    "pipe": "|",
    "comma": ",",
    "semicolon": ";",
    "blank": " ",
}
_UNDECODABLE = "ledgerbeam.undecodable"


@dataclass(frozen=True)
class Dialect:
    r"""How a text file writes rows.

    Attributes:
        delimiter: the character between the fields of CSV: one ASCII character; also `\t` or a
            name: tab, pipe, comma, semicolon, blank.
        quote: the character around fields of CSV that hold delimiters or line ends: one ASCII
            character; `none` if quotes are ordinary characters.
        comment: the beginning of lines that are comments, not rows; empty for none.
        encoding: name of a Python codec.
        trailing_delimiter: whether rows of CSV may end with a delimiter that their header lacks.
    """

    delimiter: str = ","
    quote: str = '"'
    comment: str = ""
    encoding: str = "utf-8"
    trailing_delimiter: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is invalid, or two contradict each other.
        """
        object.__setattr__(self, "delimiter", character(self.delimiter))
        object.__setattr__(self, "quote", "" if self.quote == "none" else self.quote)
        for name, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            usable = len(value) == 1 and value.isascii() and not value.isalnum()
            if (value or name == "delimiter") and (not usable or value in "\r\n\0\ufeff"):
                raise ValueError(
                    f"{name}={value}: it must be one ASCII character, neither letter nor digit"
                )
        if self.delimiter == self.quote:
            raise ValueError(f"delimiter and quote are both {self.quote}")
        if "\n" in self.comment or "\r" in self.comment:
            raise ValueError("comment: it can't hold a line end")
        if self.quote and self.comment.startswith(self.quote):
            raise ValueError(f"comment={self.comment}: rows may begin with a quote")
        object.__setattr__(self, "encoding", _codec(self.encoding))

    @property
    def is_utf_8(self) -> bool:
        """Whether a file's bytes are its text in UTF-8."""
        return self.encoding == "utf-8"

    @property
    def is_bytewise(self) -> bool:
        """Whether each byte of a line end, a delimiter or a quote can only be that character.

        Such files can be cut anywhere; others, such as UTF-16, must be decoded from the beginning.
        """
        if self.is_utf_8:
            return True
        every = bytes(range(256)).decode(self.encoding, "replace")
        return len(every) == 256 and every[:128] == bytes(range(128)).decode()

    def to_utf_8(self, data: bytes) -> bytes:
        """Text of the dialect in UTF-8; bytes that can't be decoded become invalid UTF-8.

        Args:
            data: whole lines in a bytewise encoding.
        """
        if self.is_utf_8:
            return data
        return _in_utf_8(data.decode(self.encoding, _UNDECODABLE))

    def decoder(self) -> "Decoder":
        """A decoder for text that is decoded from its beginning."""
        return Decoder(self.encoding)


class Decoder:
    """Converts bytes in any encoding to UTF-8, block by block."""

    def __init__(self, encoding: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)(_UNDECODABLE)

    def to_utf_8(self, data: bytes, *, final: bool) -> bytes:
        """The next block, as `Dialect.to_utf_8` gives it."""
        return _in_utf_8(self._decoder.decode(data, final))


def character(text: str) -> str:
    """The character that a setting names: itself, or one of tab, pipe, comma, semicolon, blank."""
    return _NAMED.get(text, text)


def _codec(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        known = "a,1\n".encode(name).decode(name) == "a,1\n"
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"encoding={encoding}: no such encoding: utf-8, latin-1, cp1252, utf-16, and what else "
            "Python knows"
        )
    return "utf-8" if name == "utf-8-sig" else name


def _in_utf_8(text: str) -> bytes:
    # Half a surrogate pair is invalid UTF-8: the line is rejected, like one with broken UTF-8.
    return text.encode("utf-8", "surrogatepass")


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(_UNDECODABLE, _mark_undecodable)

# Defined after the functions that its checks call.
PLAIN_TEXT = Dialect()
