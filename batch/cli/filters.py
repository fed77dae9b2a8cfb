"""Which runs `list` shows: flags that are read as times and as parameters."""

import datetime
from collections.abc import Sequence

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.dates import DATE_WORDS, date_of_word, read_date
from ledgerbeam.io.errors import ParameterError


def read_since(text: str) -> datetime.datetime:
    """A time in UTC: a day stands for its beginning.

    Raises:
        ParameterError: it is none.
    """
    try:
        if text in DATE_WORDS or "T" not in text:
            day = date_of_word(text, utc_now()) if text in DATE_WORDS else read_date(text)
            return datetime.datetime.combine(day, datetime.time(), datetime.UTC)
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ParameterError(f"--since={text}: {error}", parameter="--since", value=text) from error
    if time.tzinfo is None:
        raise ParameterError(
            f"--since={text}: give its zone, as in {text}Z", parameter="--since", value=text
        )
    return time.astimezone(datetime.UTC)


def read_pairs(texts: Sequence[str]) -> dict[str, str]:
    """What `--where` is given, by the parameter's name."""
    found = {}
    for text in texts:
        name, is_pair, value = text.partition("=")
        if not is_pair:
            raise ParameterError(
                f"--where={text}: give NAME=VALUE", parameter="--where", value=text
            )
        found[name.strip().replace("-", "_")] = value
    return found
