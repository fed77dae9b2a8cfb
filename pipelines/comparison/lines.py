"""What `--json` prints of comparisons: the models that its published schemas are made of."""

from collections.abc import Mapping

from pydantic import BaseModel

from ledgerbeam.batch.json_schemas import Line, TotalsJson


class ShadowLine(Line):
    """A shadow run: where its comparison and the page of that are, and what it has counted."""

    published: str
    page: str
    totals: TotalsJson


class CustomerRow(Line):
    """A row of one customer: of what it is one, and its values as text; empty for none."""

    what: str
    row: dict[str, str]


LINES: Mapping[str, type[BaseModel]] = {"customer-row": CustomerRow, "shadow": ShadowLine}
