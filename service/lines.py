"""What `--json` prints of a service: the models that its published schemas are made of."""

from collections.abc import Mapping

from pydantic import BaseModel

from ledgerbeam.batch.json_schemas import Line, line_of
from ledgerbeam.service.bulk import BulkPreview, BulkRecord, BulkTarget
from ledgerbeam.service.model import InlineAnswer, KeyRecord


class FrontEnd(Line):
    """A front end that has begun to serve; `needs_key` is whether callers need keys."""

    address: str
    needs_key: bool


class Router(Line):
    """A router that has begun."""

    routing: bool


class Node(Line):
    """A node that has begun, and the workloads that it takes requests for."""

    node: str
    workloads: list[str]


class Stopped(Line):
    """The parts of `up`, which have ended."""

    stopped: list[str]


class NewKey(Line):
    """An API key, which can't be had again."""

    key: str


class RevokedKey(Line):
    """The id of an API key that isn't valid any more."""

    key: str


LINES: Mapping[str, type[BaseModel]] = {
    "bulk": line_of(BulkRecord),
    "bulk-preview": line_of(BulkPreview),
    "bulk-target": line_of(BulkTarget),
    "front-end": FrontEnd,
    "inline": line_of(InlineAnswer),
    "key": line_of(KeyRecord),
    "new-key": NewKey,
    "node": Node,
    "revoked-key": RevokedKey,
    "router": Router,
    "stopped": Stopped,
}
