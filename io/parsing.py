"""Text in JSON and TOML as Python's values; whatever is wrong with it is a `ValueError`."""

import json
import tomllib
from collections.abc import Callable
from typing import Any

_TOO_DEEP = "values are nested too deeply"


def parse_json(text: str | bytes, parse_int: Callable[[str], Any] = int) -> Any:
    """What a text in JSON holds.

    Raises:
        ValueError: it isn't JSON, or values are nested too deeply.
    """
    try:
        return json.loads(text, parse_int=parse_int)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_toml(text: str, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """What a text in TOML holds.

    Raises:
        ValueError: it isn't TOML, or values are nested too deeply.
    """
    try:
        return tomllib.loads(text, parse_float=parse_float)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
