"""Messages that were posted in a range of time, handled on Beam: to catch up, or once more.

    ledgerbeam run expire-payment-requests --from=2026-11-20T08:00Z --to=2026-11-21T08:00Z
        --output=results

Each message is given to the handler in a transaction of its customer's, in the order of the
stream, exactly as a process of `ledgerbeam consume` gives it: what one of them has handled, the
other one leaves. Published is what became of each message: `handled`, `duplicate` (it was handled
before), or `dead`, with the error of the dead letter that it is from now on.

With --consumer=NAME they are handled by another consumer, and so once more. With --database, that
is done in another database, and --stream says where the messages are read: from a third one, or
from what `ledgerbeam messages archive` has written.
"""

import datetime
import functools
import os
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, Field, create_model

from ledgerbeam.batch.define.keyed_process import KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Parameters, instance_uri
from ledgerbeam.io.commit.records import Control, Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import TableName
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.secrets import DatabaseUrl
from ledgerbeam.messages.archive.files import stream_files
from ledgerbeam.messages.consumer.consumers import Consumer
from ledgerbeam.messages.consumer.progress import StreamRow
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.define.handlers import load_handler
from ledgerbeam.messages.model.message import to_microseconds
from ledgerbeam.messages.replay.customers import Customers, Outcome
from ledgerbeam.messages.replay.runs import begin_run
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.concurrency.retry import Retry

_TABLE = "ledgerbeam_stream"
_DATABASE = "env:LEDGERBEAM_MESSAGES"
_CONNECTIONS = 8

STREAM_CONTRACT = Contract(
    (
        Column("position", pa.int64()),
        Column("message_id", pa.int64()),
        Column("due", pa.int64()),
        Column("posted_at", pa.int64()),
        Column("bucket", pa.int64()),
        Column("version", pa.int64()),
        Column("customer", pa.string()),
        Column("key", pa.string(), nullable=True),
        Column("payload", pa.string()),
    )
)
"""The stream, in its table and in its archive."""

_ENDED = pa.schema(
    [
        ("customer", pa.string()),
        ("position", pa.int64()),
        ("message_id", pa.int64()),
        ("outcome", pa.string()),
        ("error", pa.string()),
    ]
)


class HandlerParameters(Parameters):
    """Parameters of handlers on Beam, besides `from`."""

    to: AwareDatetime = Field(description="posted before this time: 2026-11-20T08:00Z")
    consumer: str = Field(
        default="", description="the consumer that handles; by default the handler's own name"
    )
    database: DatabaseUrl = Field(
        default=_DATABASE, description="URL of the database that the handler writes to"
    )
    stream: Annotated[str, RowInput(STREAM_CONTRACT, order="position")] = Field(
        default="",
        description="where messages are read: URL of another database, or URI of an archive; by "
        "default in the database",
    )


# As a statement, `from` can't be the name of a field.
_FROM: dict[str, Any] = {"from": (AwareDatetime, Field(description="posted from this time on"))}
RangeParameters = create_model(
    "RangeParameters", __base__=HandlerParameters, __module__=__name__, **_FROM
)


class HandlerProcess(KeyedProcess[HandlerParameters]):
    """A handler as a keyed process: its rows are messages, its components are customers.

    Attributes:
        handler: what is done with each message.
    """

    handler: ClassVar[type[MessageHandler[Any]]]
    date_parameter = "to"
    key = ("customer",)
    retry = Retry(tries=1)  # messages are tried as their handler says
    rows_per_shard = 20_000
    rows_label = "messages"
    results_label = "messages with their outcome"
    holds_interpreter = True

    def __init__(self, parameters: HandlerParameters) -> None:
        """Make the definition for given parameters.

        Raises:
            ParameterError: the range ends before it begins.
        """
        super().__init__(parameters)
        self._consumer: Any = None
        self._run = 0
        if self._first >= self._end:
            raise ParameterError(
                f"--from={self._at('from')} isn't before --to={self._at('to')}", parameter="--from"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # The class itself was made by `process_of`, and is made again where it is unpickled.
        return _again, (self.handler, self.parameters, self.__dict__)

    def _at(self, name: str) -> datetime.datetime:
        moment: datetime.datetime = getattr(self.parameters, name)
        return moment.astimezone(datetime.UTC)

    @property
    def _first(self) -> int:
        return to_microseconds(self._at("from"))

    @property
    def _end(self) -> int:
        return to_microseconds(self._at("to"))

    @property
    def business_date(self) -> datetime.date:
        """The day on which the range ends, in UTC."""
        return self._at("to").date()

    @property
    def instance_name(self) -> str:
        """The range, and the consumer if it isn't the handler's own."""
        times = (self._at(name).strftime("%Y-%m-%dT%H%M%S.%f") for name in ("from", "to"))
        name = "-to-".join(time.removesuffix(".000000") + "Z" for time in times)
        consumer = self.parameters.consumer
        return f"{name}-{consumer}" if consumer else name

    def source(self, name: str) -> str | TableName:
        """The range of the stream in its table, or the files of an archive."""
        given = self.parameters.stream or self.parameters.database
        table = TableName.parse(f"{given}#{_TABLE}")
        if table is None:
            return stream_files(given, self.handler.topic, self._first, self._end)
        topic = self.handler.topic.replace("'", "''")
        return table._replace(
            where=f"topic = (SELECT id FROM ledgerbeam_topic WHERE name = '{topic}') "
            f"AND posted_at >= {self._first} AND posted_at < {self._end}"
        )

    def before(self) -> None:
        """Put the run and its consumer on record."""
        _handling.clear()  # an earlier attempt in this process may have lost its database
        parameters = self.parameters
        is_own = parameters.stream in ("", parameters.database)
        self._consumer, self._run = begin_run(
            _database(parameters.database),
            _named(self.handler, self.parameters.consumer or self.handler.name),
            instance_uri(self),
            self._first,
            self._end,
            is_own,
        )

    def cleanup(self) -> None:
        """Close the database."""
        _database(self.parameters.database).close()

    def execute_components(self, components: Components) -> pa.Table:
        """Handle the messages of many customers."""
        table = self._in_range(components.table)
        if not table.num_rows:
            return _ENDED.empty_table()
        columns = (table.column(name).to_pylist() for name in StreamRow._fields)
        rows = [StreamRow(*values) for values in zip(*columns, strict=True)]
        customers = _customers(self, self._consumer, self._run)
        ended = customers.handle(rows)
        outcomes = [ended[row.position] for row in rows]
        return pa.table(
            {
                "customer": table.column("customer"),
                "position": table.column("position"),
                "message_id": table.column("message_id"),
                "outcome": [str(outcome.outcome) for outcome in outcomes],
                "error": [outcome.error for outcome in outcomes],
            },
            _ENDED,
        )

    def _in_range(self, table: pa.Table) -> pa.Table:
        """What was posted in the range; an archive's files have more."""
        at = table.column("posted_at")
        return table.filter(pc.and_(pc.greater_equal(at, self._first), pc.less(at, self._end)))

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """How many messages there were in the range."""
        return {"in_range": self._in_range(executed.table).num_rows}

    def result_totals(self, results: Components) -> Totals:
        """How many messages have each outcome."""
        outcomes = results.table.column("outcome")
        return {
            outcome: pc.sum(pc.equal(outcomes, outcome)).as_py() or 0
            for outcome in map(str, Outcome)
        }

    def controls(self, totals: Totals) -> list[Control]:
        """Each message has one outcome."""
        return [
            Control(
                name="messages: in range = handled + duplicate + dead",
                expected=totals.get("in_range", 0),
                actual=sum(totals.get(outcome, 0) for outcome in map(str, Outcome)),
            )
        ]


_processes: dict[type[MessageHandler[Any]], type[HandlerProcess]] = {}


def process_of(handler: type[MessageHandler[Any]]) -> type[HandlerProcess]:
    """The process that handles messages by a handler; the same class each time."""
    if handler not in _processes:
        members = {
            "__module__": __name__,
            "__doc__": handler.__doc__,
            "name": handler.name,
            "handler": handler,
            "parameters_type": RangeParameters,
        }
        _processes[handler] = type(handler.__name__, (HandlerProcess,), members)
    return _processes[handler]


def workload_of(name: str) -> type[HandlerProcess]:
    """The process of a handler that is installed, or of MODULE:CLASS.

    Raises:
        ParameterError: there is no such handler.
        DefinitionError: it is something else.
    """
    return process_of(load_handler(name))


def _again(
    handler: type[MessageHandler[Any]], parameters: HandlerParameters, state: dict[str, Any]
) -> HandlerProcess:
    process = process_of(handler)(parameters)
    process.__dict__.update(state)
    return process


def _named(handler: type[MessageHandler[Any]], name: str) -> type[MessageHandler[Any]]:
    """The handler under a consumer's name."""
    if name == handler.name:
        return handler
    return type(handler.__name__, (handler,), {"name": name})


def _database(url: str) -> MessageDatabase:
    """The database that this process writes to; its threads share one."""
    return _open(url, os.getpid())


@functools.lru_cache(maxsize=4)
def _open(url: str, process: int) -> MessageDatabase:
    return MessageDatabase.open(url, _CONNECTIONS, keeps_plans=True)


def _customers(process: HandlerProcess, consumer: Consumer, run: int) -> Customers:
    """What handles in this process; made once for each run."""
    url, name = process.parameters.database, consumer.name
    key = (url, os.getpid(), name, run)
    if key not in _handling:
        _handling.clear()
        handler = _named(process.handler, name)()
        _handling[key] = Customers(_database(url), consumer, handler, run)
    return _handling[key]


_handling: dict[tuple[str, int, str, int], Customers] = {}
