"""Lines of text files, and at which of them records end.

A line belongs to the part of a file that holds its first byte; so does a record, which is one line
or several: a field of CSV may hold line ends in quotes (RFC 4180). The line alone doesn't show
whether it begins in quotes. So before a file with quotes is cut, that is found out by reading it
from the beginning (`parts_in_quotes`).
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice, pairwise, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.io.datasets.dialect import Decoder, Dialect
from ledgerbeam.io.datasets.zipped import ZIP_ERRORS, open_member
from ledgerbeam.io.errors import InputError, UserError
from ledgerbeam.io.storage import stores

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 20
_HEAD_BYTES = 64 << 10
# Text seldom shrinks to less than a fiftieth; what shrinks more is small or made to fill memory.
_MAX_RATIO = 200
_MIN_LIMIT = 1 << 30
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_LF = ord("\n")

Ends = npt.NDArray[np.int64] | None
"""Offsets of the bytes after the records' line ends; None if every line is a record."""


class TextFile(NamedTuple):
    """A text file, or a part of it.

    Attributes:
        uri: URI of the file.
        format: csv or jsonl.
        compression: gzip, zstd, zip or None.
        dialect: how the file is written.
        start: the first byte of the part.
        end: the byte after its last one; None for the whole rest.
        max_bytes: bytes that a compressed file may unpack to.
    """

    uri: str
    format: str
    compression: str | None
    dialect: Dialect
    start: int = 0
    end: int | None = None
    max_bytes: int | None = None

    @property
    def has_quotes(self) -> bool:
        """Whether a record may have several lines."""
        return self.format == "csv" and bool(self.dialect.quote)


class Records(NamedTuple):
    """Consecutive records.

    Attributes:
        data: their text in UTF-8, as whole lines.
        ends: where the records end in the text.
        is_open: whether this is one record whose quotes are never closed.
    """

    data: bytes
    ends: Ends
    is_open: bool = False

    def bounds(self) -> npt.NDArray[np.int64]:
        """int64 `(records + 1,)`: where each record begins, and where the last one ends."""
        ends = _line_ends(self.data) if self.ends is None else self.ends
        return np.concatenate([np.zeros(1, np.int64), ends])

    def first_lines(self) -> npt.NDArray[np.int64]:
        """int64 `(records,)`: the line that each record begins with, from 0."""
        bounds = self.bounds()[:-1]
        if self.ends is None:
            return np.arange(len(bounds), dtype=np.int64)
        return np.searchsorted(_line_ends(self.data), bounds, "right")

    def behind(self, count: int) -> "Records":
        """The records after the first `count` ones."""
        at = int(self.bounds()[count])
        return Records(self.data[at:], None if self.ends is None else self.ends[count:] - at)

    def parts(self, count: int) -> "Iterator[Records]":
        """The records in parts of at most `count` records, or one part if there are none."""
        bounds = self.bounds().tolist()
        if len(bounds) <= count + 1:
            yield self
            return
        for first in range(0, len(bounds) - 1, count):
            begin, end = bounds[first], bounds[min(first + count, len(bounds) - 1)]
            ends = None if self.ends is None else self.ends[first : first + count] - begin
            yield Records(self.data[begin:end], ends)

    def lines(self, count: int) -> "Iterator[Records]":
        """Each line as a record, in parts of at most `count`; there may be millions in one."""
        begin = 0
        while begin < len(self.data):
            last = self.data.find(b"\n", begin + BLOCK_BYTES)
            end = last + 1 if last >= 0 else len(self.data)
            yield from Records(self.data[begin:end], None).parts(count)
            begin = end


def read_records(
    file: TextFile, in_quotes: bool, block_bytes: int | None = None
) -> Iterator[Records]:
    """The records that begin in a part of a file.

    Args:
        file: the part of the file.
        in_quotes: whether its first line begins in quotes, and so belongs to an earlier record.
        block_bytes: bytes to read at a time; by default `BLOCK_BYTES`.

    Raises:
        InputError: the file is damaged, or a record is longer than `MAX_LINE_BYTES` bytes.
    """
    rest = b""
    skip = in_quotes
    for data, is_beyond in lines_of(file, block_bytes):
        if is_beyond and (skip or not rest):
            return
        ends, in_quotes = find_records(data, file, in_quotes)
        first, last = _first_and_last(data, ends)
        if skip:
            if not last:
                continue
            ends = None if ends is None else ends[1:] - first
            data = data[first:]
            last -= first
            skip = False
        if last and is_beyond:
            yield Records(rest + data[:first], np.array([len(rest) + first]))
            return
        if last:
            # There is a rest only if quotes were open; then the ends have been searched.
            yield Records(rest + data[:last], None if ends is None else ends + len(rest))
            rest = data[last:]
        else:
            rest += data
        if len(rest) > MAX_LINE_BYTES:
            raise InputError(
                f"{file.uri}: quotes go on for more than {MAX_LINE_BYTES >> 20} MiB: close them, "
                "or say --quote=none where quotes are characters like others",
                file=file.uri,
            )
    if rest:
        yield Records(rest, None, is_open=True)


def lines_of(file: TextFile, block_bytes: int | None = None) -> Iterator[tuple[bytes, bool]]:
    """The lines of a part of a file and those after it, in UTF-8, in blocks of whole lines.

    Yields:
        A block, and whether it is after the part.

    Raises:
        InputError: the file is damaged, or a line is longer than `MAX_LINE_BYTES` bytes.
    """
    # If the byte before the part ends a line, only that byte is skipped.
    position = max(file.start - 1, 0)
    in_line_before = file.start > 0
    is_first = not in_line_before
    rest = b""

    def block(data: bytes) -> bytes:
        nonlocal is_first
        if file.dialect.is_bytewise:
            data = file.dialect.to_utf_8(data)
        if is_first:
            data = data.removeprefix(BYTE_ORDER_MARK)
            is_first = False
        return data

    for data in _read(file, position, block_bytes):
        rest += data
        if in_line_before:
            begin = rest.find(b"\n") + 1
            in_line_before = not begin
            position += begin or len(rest)
            rest = rest[begin:] if begin else b""
            if file.end is not None and position >= file.end:
                return
        if file.end is not None and position < file.end <= position + len(rest):
            # The last line of the part is the one that holds the part's last byte.
            cut = rest.find(b"\n", file.end - position - 1) + 1
            if cut:
                yield block(rest[:cut]), False
                position += cut
                rest = rest[cut:]
        is_beyond = file.end is not None and position >= file.end
        if is_beyond or file.end is None or position + len(rest) < file.end:
            cut = rest.rfind(b"\n") + 1
            if cut:
                yield block(rest[:cut]), is_beyond
                position += cut
                rest = rest[cut:]
        if len(rest) > MAX_LINE_BYTES:
            raise line_too_long(file.uri, file.format)
    if rest:
        yield block(rest), file.end is not None and position >= file.end


def find_records(data: bytes, file: TextFile, in_quotes: bool) -> tuple[Ends, bool]:
    """Where records end in whole lines, and whether the next line begins in quotes.

    Quotes open at the beginning of a field and close at the next quote; two quotes within quotes
    are one quote of the value. Other quotes are ordinary characters: `5" pipe` opens nothing.

    Args:
        data: the lines, in UTF-8.
        file: the file that holds them.
        in_quotes: whether the first line begins in quotes.
    """
    quotes, goes_on = _quotes_of(data, file, in_quotes)
    if quotes is None:
        return None, goes_on
    ends = _line_ends(data)
    # A line end after an even number of quotes is outside of quotes.
    before = np.searchsorted(quotes, ends, "left")
    return ends[(before + in_quotes) % 2 == 0], goes_on


def _quotes_of(
    data: bytes, file: TextFile, in_quotes: bool
) -> tuple[npt.NDArray[np.int64] | None, bool]:
    """Where quotes open or close (None if nowhere), and whether the next line begins in them."""
    if not file.has_quotes or not (in_quotes or file.dialect.quote.encode() in data):
        return None, False
    comment = file.dialect.comment.encode()
    text = np.frombuffer(data, np.uint8)
    if not comment:
        return _quotes(text, file.dialect, in_quotes)
    # Quotes in comments don't count; whether a line is a comment depends on the quotes before it.
    found = re.finditer(rb"^" + re.escape(comment) + rb".*\n?", data, re.MULTILINE)
    bounds = [0, *chain.from_iterable(line.span() for line in found), len(data)]
    quotes = []
    for number, (begin, end) in enumerate(pairwise(bounds)):
        is_comment = number % 2 == 1 and not in_quotes
        if not is_comment:
            part, in_quotes = _quotes(text[begin:end], file.dialect, in_quotes)
            quotes.append(part + begin)
    return np.concatenate(quotes), in_quotes


def _quotes(
    text: npt.NDArray[np.uint8], dialect: Dialect, in_quotes: bool
) -> tuple[npt.NDArray[np.int64], bool]:
    """Where quotes open or close in whole lines, and whether they end in quotes."""
    quote, delimiter = ord(dialect.quote), ord(dialect.delimiter)
    quotes = np.flatnonzero(text == quote)
    opens = quotes[int(in_quotes) :: 2]
    # The text begins with a line. Two quotes within quotes count as closing and opening.
    before = np.where(opens > 0, text[opens - 1], _LF)
    if not ((before == delimiter) | (before == _LF) | (before == quote)).all():
        quotes = np.array(list(_each_quote(text, quotes, delimiter, in_quotes)), np.int64)
    return quotes, bool((len(quotes) + in_quotes) % 2)


def _each_quote(
    text: npt.NDArray[np.uint8], quotes: npt.NDArray[np.int64], delimiter: int, in_quotes: bool
) -> Iterator[int]:
    """The quotes that open or close, found one by one."""
    closed = -2
    for quote in quotes.tolist():
        if in_quotes:
            in_quotes, closed = False, quote
            yield quote
        elif quote == 0 or text[quote - 1] in (delimiter, _LF) or closed == quote - 1:
            in_quotes = True
            yield quote


def parts_in_quotes(file: TextFile, starts: Sequence[int]) -> list[bool]:
    """For each part of a file, whether the first line that begins in it begins in quotes.

    The file is read once, in parallel, and parsed only if it has a quote at all.

    Args:
        file: the whole file.
        starts: the first byte of each part, beginning with 0.

    Raises:
        InputError: the file is damaged, or a line is longer than `MAX_LINE_BYTES` bytes.
    """
    parts = [
        file._replace(start=start, end=end)
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    if not file.has_quotes or len(parts) < 2:
        return [False] * len(parts)
    with ThreadPoolExecutor(8) as pool:
        if not any(pool.map(_holds_quote, parts)):
            return [False] * len(parts)
        if_outside = list(pool.map(_goes_on_in_quotes, parts[:-1], repeat(False)))
    result = [False]
    for part, goes_on in zip(parts[:-1], if_outside, strict=True):
        result.append(_goes_on_in_quotes(part, True) if result[-1] else goes_on)
    return result


def _holds_quote(part: TextFile) -> bool:
    quote = part.dialect.quote.encode()
    left = None if part.end is None else part.end - part.start
    for data in _read(part, part.start):
        if quote in (data if left is None else data[:left]):
            return True
        if left is not None:
            left -= len(data)
            if left <= 0:
                break
    return False


def _goes_on_in_quotes(part: TextFile, in_quotes: bool) -> bool:
    """Whether the line after a part begins in quotes, given whether its first line does."""
    for data, is_beyond in lines_of(part):
        if is_beyond:
            break
        _, in_quotes = _quotes_of(data, part, in_quotes)
    return in_quotes


def _line_ends(data: bytes) -> npt.NDArray[np.int64]:
    """Offsets after each line; the last line may have no line end."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LF) + 1
    return np.append(ends, len(data)) if data and not data.endswith(b"\n") else ends


def _first_and_last(data: bytes, ends: Ends) -> tuple[int, int]:
    """Offsets after the first record and after the last one; 0 if no record ends."""
    if ends is None:
        return data.find(b"\n") + 1 or len(data), len(data)
    return (int(ends[0]), int(ends[-1])) if len(ends) else (0, 0)


def _read(file: TextFile, position: int, block_bytes: int | None = None) -> Iterator[bytes]:
    """A file's bytes from a position on; if its encoding isn't bytewise, its text in UTF-8."""
    decoder = None if file.dialect.is_bytewise else file.dialect.decoder()
    unpacked = 0
    try:
        with open_text(file.uri, file.compression) as text:
            if position:
                text.seek(position)
            while data := text.read(block_bytes or BLOCK_BYTES):
                unpacked += len(data)
                if file.compression and file.max_bytes is not None and unpacked > file.max_bytes:
                    raise unpacks_to_too_much(file.uri, file.max_bytes)
                yield bytes(data) if decoder is None else _in_utf_8(file, decoder, data)
    except (OSError, *ZIP_ERRORS) as error:
        raise damaged(file.uri, file.compression or "text", error) from error
    if decoder is not None:
        yield _in_utf_8(file, decoder, b"", final=True)


def _in_utf_8(file: TextFile, decoder: Decoder, data: bytes, *, final: bool = False) -> bytes:
    """The next block of a file's text in UTF-8; what a codec refuses as a whole is the file's."""
    try:
        return decoder.to_utf_8(data, final=final)
    except UnicodeError as error:
        name = file.dialect.encoding.upper()
        raise InputError(
            f"{file.uri}: not {name}: {error}: say its --encoding, or convert it", file=file.uri
        ) from error


@contextmanager
def open_text(uri: str, compression: str | None) -> Iterator[Any]:
    """The bytes of a file, decompressed as they are read."""
    with stores.open_input(uri) as source:
        if compression == "zip":
            with open_member(uri, source) as member:
                yield member
        elif compression:
            with pa.CompressedInputStream(source, compression) as stream:
                yield stream
        else:
            yield source


def first_record(file: TextFile, skip_blank: bool = False) -> tuple[str, int, int]:
    """The first record of a file that isn't a comment, and its line numbers.

    Args:
        file: text.
        skip_blank: whether records of white space are no records either.

    Returns:
        The text without its line end, empty in an empty file; the number of the line that it
        begins with, from 1; and how many lines there are up to its end.

    Raises:
        InputError: the file is damaged, or the record isn't text of the dialect's encoding.
    """
    end = 0
    for line, data in _head(file):
        end = line + data.count(b"\n") + (not data.endswith(b"\n")) - 1
        if not _is_comment(file, data) and (data.strip() or not skip_blank):
            return _decoded(file, data, line), line, end
    return "", end + 1, end


def first_records(file: TextFile, count: int) -> list[bytes]:
    """The first records of a file that are neither comments nor blank, as they are."""
    records = (data for _, data in _head(file) if data.strip() and not _is_comment(file, data))
    return list(islice(records, count))


def _head(file: TextFile) -> Iterator[tuple[int, bytes]]:
    """The records from the beginning, each with the number of its line, from 1."""
    line = 1
    for records in read_records(file, False, _HEAD_BYTES):
        bounds = records.bounds().tolist() if not records.is_open else [0, len(records.data)]
        for begin, end in pairwise(bounds):
            data = records.data[begin:end]
            yield line, data
            line += data.count(b"\n") + (not data.endswith(b"\n"))


def _is_comment(file: TextFile, record: bytes) -> bool:
    comment = file.dialect.comment.encode()
    return bool(comment) and record.startswith(comment)


def _decoded(file: TextFile, data: bytes, line: int) -> str:
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        name = file.dialect.encoding.upper()
        reason = f": {error.reason}" if file.dialect.is_utf_8 else ""
        raise InputError(
            f"{file.uri}, line {line}: not {name}{reason}: say its --encoding, or convert it",
            file=file.uri,
            row=line,
        ) from error


def offset_of_line(file: TextFile, lines: int) -> int:
    """How many bytes the first `lines` lines of a file take, in a bytewise encoding."""
    offset = 0
    for data in _read(file, 0):
        begin = 0
        while lines and (end := data.find(b"\n", begin) + 1):
            begin = end
            lines -= 1
        if not lines:
            return offset + begin
        offset += len(data)
    return offset


def damaged(uri: str, format_: str, error: Exception) -> UserError:
    """The error for a file that can't be read to its end."""
    return InputError(
        f"{uri}: damaged or truncated {format_} file: {error}: get the file again from its source",
        file=uri,
    )


def max_unpacked(size: int, max_mebibytes: int | None) -> int:
    """Bytes that a file may unpack to; 200 times its own by default, and a GiB if that is more."""
    if max_mebibytes is not None:
        return max_mebibytes << 20
    return max(_MAX_RATIO * size, _MIN_LIMIT)


def unpacks_to_too_much(uri: str, max_bytes: int) -> UserError:
    """The error for a file that unpacks to more than `max_bytes` bytes."""
    return InputError(
        f"{uri}: it unpacks to more than {max_bytes >> 20:,} MiB: if it is meant to be that large, "
        "say --max-decompressed=MIB",
        file=uri,
        value=max_bytes,
    )


def line_too_long(uri: str, format_: str) -> UserError:
    """The error for a line of more than `MAX_LINE_BYTES` bytes."""
    return InputError(
        f"{uri}: a line is longer than {MAX_LINE_BYTES >> 20} MiB: is it really {format_}?",
        file=uri,
    )
