"""How bytes and texts are changed by chance, and how many cases there are."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ledgerbeam.io.errors import UserError

_T = TypeVar("_T")

CASES = os.environ.get("LEDGERBEAM_FUZZ_CASES")
"""How many cases `make fuzz` tries of each property; None in the suite."""

CASES_OF_SUITE = 30


def cases(share: float = 1.0) -> settings:
    """How many cases a property is tried with: by chance, or in the suite the same each time.

    Args:
        share: less than 1 for a property whose cases take long.
    """
    number = int(CASES or CASES_OF_SUITE)
    return settings(
        max_examples=max(10, round(share * number)),
        derandomize=CASES is None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )


@st.composite
def mutated(draw: st.DrawFn, data: bytes, tokens: Sequence[bytes] = (), most: int = 4) -> bytes:
    """Data with one to `most` changes: bytes replaced, put in, left out, repeated or cut off.

    Args:
        draw: gives choices.
        data: that is changed.
        tokens: what means something in its format.
        most: changes.
    """
    piece = st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([*tokens, b"\0"]))
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([1, 1, 2, 4, 8, 50])))
        match draw(st.integers(0, 5)):
            case 0:
                data = data[:start] + draw(piece) + data[end:]
            case 1:
                data = data[:start] + draw(piece) + data[start:]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:]
            case 4 if start < len(data):
                flipped = data[start] ^ 1 << draw(st.integers(0, 7))
                data = data[:start] + bytes([flipped]) + data[start + 1 :]
            case _:
                data = data[:start] if draw(st.booleans()) else data[start:] + data[:start]
    return data


def mutated_text(text: str, tokens: Sequence[str] = (), most: int = 4) -> st.SearchStrategy[str]:
    """The same of a text; what is no UTF-8 any more stands as surrogates, as in arguments."""
    encoded = [token.encode() for token in tokens]
    changed = mutated(text.encode(), encoded, most)
    return changed.map(lambda data: data.decode("utf-8", "surrogateescape"))


def refused(function: Callable[[], _T]) -> _T | None:
    """What a call gives; None where it is refused, in one line."""
    try:
        return function()
    except UserError as error:
        message = str(error)
    assert message, "a refusal without words"
    assert len(message.splitlines()) == 1, f"more than one line: {message!r}"
    return None
