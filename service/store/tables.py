"""The tables of the service. They stand in the registry's database, which migrates them.

| table | what |
| --- | --- |
| `kind` | a workload as its router has published it: the schema of its parameters, its policy |
| `queue` | what people have changed of a kind's policy, whether it is held, how far its turns are |
| `turn` | the last turn that a requester was given in a queue |
| `request` | what was asked for, by whom, and how it stands |
| `idempotency` | which request an `Idempotency-Key` stands for, until it expires |
| `bulk` | an action on many runs, requests or queues, and how it stands |
| `bulk_target` | what each of them acts on, and what became of it |
| `errand` | what a node is to answer at once, and the answer, until it expires |
| `node` | a node that is there, on which machine, and the kinds that it serves |
| `audit` | who did what, when and why; entries are never changed |
| `api_key` | hashes of keys, with the roles that they give |
"""

from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.registry.schema import Json, Prose, Sequence, UtcDateTime, one_of, run
from ledgerbeam.batch.registry.schema import metadata as of_registry
from ledgerbeam.service.bulk import BulkOf, BulkState, BulkVerb, TargetState
from ledgerbeam.service.model import ErrandKind, RequestState, Verb

metadata = sa.MetaData(naming_convention=of_registry.naming_convention)


def _index(name: str, column: sa.Column[Any], condition: str) -> None:
    where = sa.text(condition)
    sa.Index(name, column, sqlite_where=where, postgresql_where=where)


def _column(name: str, type_: Any, *others: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, *others, **{"nullable": False, **options})


kind = sa.Table(
    "kind",
    metadata,
    _column("name", sa.Text, primary_key=True),
    _column("description", sa.Text),
    _column("parameters_schema", Json),
    _column("code_version", sa.Text),
    _column("policy", Json),
    _column("seen_at", UtcDateTime),
    _column("approvals", Json, server_default="[]"),
)

queue = sa.Table(
    "queue",
    metadata,
    _column("kind", sa.Text, primary_key=True),
    _column("changes", Json),
    _column("held_why", Prose, nullable=True),
    _column("clock", Sequence),
    _column("version", sa.Integer),
)

turn = sa.Table(
    "turn",
    metadata,
    _column("kind", sa.Text, primary_key=True),
    _column("requester", Prose, primary_key=True),
    _column("last", Sequence),
)

request = sa.Table(
    "request",
    metadata,
    _column("sequence", Sequence, primary_key=True),
    _column("id", sa.Text),
    _column("kind", sa.Text),
    _column("verb", one_of(Verb)),
    _column("state", one_of(RequestState)),
    _column("parameters", Json),
    _column("priority", sa.Integer),
    _column("turn", Sequence),
    _column("requester", Prose),
    _column("why", Prose),
    _column("received_at", UtcDateTime),
    _column("start_by", UtcDateTime, nullable=True),
    _column("queued_at", UtcDateTime, nullable=True),
    _column("started_at", UtcDateTime, nullable=True),
    _column("ended_at", UtcDateTime, nullable=True),
    _column("run_id", sa.Text, sa.ForeignKey(run.c.id), nullable=True),
    _column("node", sa.Text, nullable=True),
    _column("epoch", sa.Integer),
    _column("lost", sa.Integer),
    _column("lease_until", UtcDateTime, nullable=True),
    _column("cancel_why", Prose, nullable=True),
    _column("code", sa.Text, nullable=True),
    _column("error", Prose, nullable=True),
    _column("problems", Json),
    _column("version", sa.Integer),
    _column("traceparent", sa.Text, nullable=True),
    sa.UniqueConstraint("id"),
    sa.CheckConstraint(
        "(state = 'RUNNING') = (lease_until IS NOT NULL AND node IS NOT NULL)", name="lease"
    ),
    sa.CheckConstraint(
        "(state IN ('RECEIVED', 'QUEUED', 'RUNNING')) = (ended_at IS NULL)", name="ended"
    ),
    sa.Index(None, "kind", "state", "priority", "turn", "sequence"),
    sa.Index(None, "state", "sequence"),
    sa.Index(None, "kind", "sequence"),
    sa.Index(None, "kind", "state", "sequence"),
    sa.Index(None, "kind", "requester", "sequence"),
    sa.Index(None, "requester", "sequence"),
    sa.Index(None, "requester", "state", "sequence"),
    sa.Index(None, "run_id"),
)

_index("ix_request_error", request.c.sequence, "error IS NOT NULL")

idempotency = sa.Table(
    "idempotency",
    metadata,
    _column("requester", Prose, primary_key=True),
    _column("key", Prose, primary_key=True),
    _column("fingerprint", sa.Text),
    _column("request_id", sa.Text, sa.ForeignKey(request.c.id)),
    _column("expires_at", UtcDateTime),
    sa.Index(None, "expires_at"),
)

bulk = sa.Table(
    "bulk",
    metadata,
    _column("sequence", Sequence, primary_key=True),
    _column("id", sa.Text),
    _column("of", one_of(BulkOf)),
    _column("verb", one_of(BulkVerb)),
    _column("filter", Json),
    _column("why", Prose),
    _column("requester", Prose),
    _column("kinds", Json),
    _column("state", one_of(BulkState)),
    _column("asked_at", UtcDateTime),
    _column("approved_by", Prose, nullable=True),
    _column("ended_at", UtcDateTime, nullable=True),
    _column("key", Prose, nullable=True),
    _column("fingerprint", sa.Text),
    _column("version", sa.Integer),
    sa.UniqueConstraint("id"),
    sa.Index(None, "state", "sequence"),
    sa.Index(None, "requester", "key"),
)

bulk_target = sa.Table(
    "bulk_target",
    metadata,
    _column("bulk", Sequence, sa.ForeignKey("bulk.sequence"), primary_key=True),
    _column("number", sa.Integer, primary_key=True),
    _column("id", sa.Text),
    _column("kind", sa.Text),
    _column("name", Prose),
    _column("seen", Sequence),
    _column("state", one_of(TargetState)),
    _column("done_at", UtcDateTime, nullable=True),
    _column("request_id", sa.Text, nullable=True),
    _column("told", Prose, nullable=True),
    sa.Index(None, "bulk", "state", "number"),
)

errand = sa.Table(
    "errand",
    metadata,
    _column("sequence", Sequence, primary_key=True),
    _column("id", sa.Text),
    _column("what", one_of(ErrandKind)),
    _column("kind", sa.Text),
    _column("host", sa.Text, nullable=True),
    _column("given", Json),
    _column("requester", Prose),
    _column("why", Prose),
    _column("asked_at", UtcDateTime),
    _column("deadline", UtcDateTime),
    _column("node", sa.Text, nullable=True),
    _column("answered_at", UtcDateTime, nullable=True),
    _column("answer", Json, nullable=True),
    _column("code", sa.Text, nullable=True),
    _column("error", Prose, nullable=True),
    _column("key", Prose, nullable=True),
    _column("fingerprint", sa.Text),
    _column("expires_at", UtcDateTime),
    sa.UniqueConstraint("id"),
    sa.Index(None, "node", "sequence"),
    sa.Index(None, "requester", "key"),
    sa.Index(None, "expires_at"),
)

node = sa.Table(
    "node",
    metadata,
    _column("name", sa.Text, primary_key=True),
    _column("host", sa.Text),
    _column("kinds", Json),
    _column("seen_at", UtcDateTime),
)

audit = sa.Table(
    "audit",
    metadata,
    _column("sequence", Sequence, primary_key=True),
    _column("at", UtcDateTime),
    _column("who", Prose),
    _column("action", sa.Text),
    _column("kind", sa.Text, nullable=True),
    _column("subject", Prose),
    _column("why", Prose),
    _column("detail", Json),
    _column("sealed", sa.Boolean, server_default=sa.false()),
    sa.Index(None, "subject", "sequence"),
    sa.Index(None, "kind", "sequence"),
)

_index("ix_audit_unsealed", audit.c.sequence, "NOT sealed")

api_key = sa.Table(
    "api_key",
    metadata,
    _column("id", sa.Text, primary_key=True),
    _column("secret_hash", sa.Text),
    _column("name", Prose),
    _column("roles", Json),
    _column("parent", sa.Text, sa.ForeignKey("api_key.id"), nullable=True),
    _column("created_at", UtcDateTime),
    _column("created_by", Prose),
    _column("expires_at", UtcDateTime, nullable=True),
    _column("revoked_at", UtcDateTime, nullable=True),
)
