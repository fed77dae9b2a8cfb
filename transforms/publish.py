"""Publishing tables by the commit protocol: all of them at once, or none.

The functions without Beam are `commit_part`, which commits a shard, and `manifest_of`, which makes
a manifest from the shards' markers.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, AsSingleton

from ledgerbeam import __version__
from ledgerbeam.io.commit.attempts import Attempt, start_attempt
from ledgerbeam.io.commit.records import (
    AttemptRecord,
    Control,
    FileRecord,
    Manifest,
    ShardCommit,
    Totals,
    Volume,
)
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import tidy
from ledgerbeam.transforms.columnar.shard_totals import (
    InputTotals,
    ReadTotals,
    ShardTotals,
    TotalNames,
    read_to_json,
)
from ledgerbeam.transforms.columnar.totals import NO_ROWS, TableTotals, table_totals
from ledgerbeam.transforms.shuffle import ShuffleByKey


@dataclass(frozen=True)
class Part:
    """The data to commit for a shard.

    Attributes:
        table: the results.
        tables: extra tables, by name.
        totals: totals of the shard, by their flat names.
        key: columns that identify the component of a row.
        outcomes: outcomes of components, without plain successes; None for none.
        rejects: rows rejected while the shard was executed; None for none.
        position: for a shard of a walk, where the walk continues after it; else None.
    """

    table: pa.Table
    totals: Totals
    key: Sequence[str]
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    outcomes: pa.Table | None = None
    rejects: pa.Table | None = None
    position: dict[str, Any] | None = None


def commit_part(attempt: Attempt, shard: int, part: Part) -> ShardCommit:
    """Write a shard's files and make its marker, or return the marker that exists already.

    Raises:
        FencedError: the attempt was given up.
        UserError: a file can't be written.
    """
    outcomes = rejects = None
    if part.outcomes is not None:
        outcomes = attempt.write_outcomes(shard, part.outcomes)
    if part.rejects is not None:
        rejects = attempt.write_rejects(f"shard-{shard:05d}", part.rejects)
    return attempt.commit(
        ShardCommit(
            shard=shard,
            attempt=attempt.record.number,
            code_version=__version__,
            part=attempt.write_part(shard, part.table),
            tables={n: attempt.write_part(shard, table, n) for n, table in part.tables.items()},
            rejects=rejects,
            outcomes=outcomes,
            key=list(part.key),
            totals=part.totals,
            position=part.position,
        )
    )


def count_committed(commit: ShardCommit) -> ShardCommit:
    """Count committed rows and bytes in Beam's metrics; must be called in the bundle's thread."""
    Metrics.counter("committed", "rows").inc(commit.part.rows)
    Metrics.counter("committed", "bytes").inc(commit.part.size)
    return commit


def whole(attempt: Attempt, commits: Sequence[ShardCommit]) -> list[ShardCommit]:
    """The markers in the order of their shards.

    Raises:
        RuntimeError: a marker is missing.
    """
    by_shard = {commit.shard: commit for commit in commits}
    expected = len(by_shard) if attempt.record.shards is None else attempt.record.shards
    if sorted(by_shard) != list(range(expected)):
        raise RuntimeError(f"{len(by_shard)} of {expected} shards are committed")
    return [by_shard[shard] for shard in range(expected)]


def manifest_of(
    attempt: Attempt,
    shards: Sequence[ShardCommit],
    read: Totals,
    totals: Totals,
    counts: Totals,
    controls: Sequence[Control],
    at: datetime.datetime,
    rejects: Sequence[FileRecord] = (),
    reports: Sequence[FileRecord] = (),
    volume: Volume | None = None,
) -> Manifest:
    """The manifest of an instance whose shards are all committed.

    Args:
        attempt: the attempt that publishes.
        shards: the markers, in the order of their shards.
        read: totals over the input.
        totals: totals over the shards.
        counts: numbers of rows and components.
        controls: the comparisons that must balance.
        at: the time of publication, in UTC.
        rejects: files of rows that were rejected while the input was read.
        reports: files of the reduce step.
        volume: how many rows were found and expected.
    """
    first = shards[0] if shards else None
    tables = {} if first is None else first.tables
    return Manifest(
        attempt=attempt.record,
        published_at=at,
        shards=list(shards),
        rejects=list(rejects),
        reports=sorted(reports, key=lambda file: file.name),
        columns={} if first is None else attempt.columns_of(first.part),
        tables={name: attempt.columns_of(part) for name, part in tables.items()},
        read=read,
        totals=totals,
        counts=counts,
        controls=list(controls),
        volume=volume,
    )


class PublishTables(beam.PTransform):
    """Publishes a collection of tables as one dataset: all of its rows, or none.

    Rows are grouped by key and sorted; each shard is a Parquet file. The manifest, which readers
    follow, is made last, and only if the totals of rows, amounts and ids that were written equal
    those of the input. The output is one `Manifest`.

        from ledgerbeam.transforms import PublishTables

        _ = marked | PublishTables(
            "gs://bank/deliveries/2026-11-20",
            schema=MARKED,
            key=("client_code", "symbol"),
            order=("id",),
            amounts=("quantity",),
            at=datetime.datetime.now(datetime.UTC),
        )

        import ledgerbeam as lb

        lb.read_published("gs://bank/deliveries/2026-11-20").to_table()

    A second run to the same URI writes its own files, and then fails instead of publishing again.
    """

    def __init__(
        self,
        uri: str,
        *,
        schema: pa.Schema,
        key: Sequence[str],
        at: datetime.datetime,
        order: Sequence[str] = (),
        shards: int = 1,
        amounts: Sequence[str] = (),
        currency: str = "",
    ) -> None:
        """Make the transform.

        Args:
            uri: URI of the dataset; its last two parts name the process and the instance.
            schema: the schema of the tables.
            key: columns by which rows are cut into shards and sorted.
            at: time in UTC, for the record.
            order: more columns to sort by.
            shards: how many files there are.
            amounts: int64 or decimal columns that are added up on both sides.
            currency: column of their ISO 4217 codes; empty for one currency.

        Raises:
            ValueError: a column isn't in the schema, or the URI has fewer than two parts.
        """
        super().__init__()
        names = (*key, *(name.removeprefix("-") for name in order), *amounts)
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise ValueError(f"the schema has no column {missing[0]}: name columns that it has")
        *_, process, instance = ["", "", *uri.rstrip("/").split("/")]
        if not process or not instance:
            raise ValueError(f"{uri}: name the dataset by two parts, such as deliveries/2026-11-20")
        self._uri = uri.rstrip("/")
        self._shuffle = ShuffleByKey(key, shards, schema, order)
        self._totals = _TotalsOf(tuple(amounts), currency, tuple(key))
        self._draft = AttemptRecord(
            process=process,
            instance=instance,
            number=1,
            started_at=at,
            code_version=__version__,
            parameters={},
            inputs=[],
            shards=shards,
            fingerprint=hashlib.sha256(repr((uri, schema, key, order)).encode()).hexdigest(),
            total_decimals={
                name: schema.field(name).type.scale
                for name in amounts
                if not currency and pa.types.is_decimal(schema.field(name).type)
            },
        )

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        """Build the graph."""
        root = tables.pipeline
        attempt = AsSingleton(
            root
            | "Instance" >> beam.Create([self._uri])
            | "StartAttempt" >> beam.Map(start_attempt, self._draft)
        )
        read = tables | "CountRead" >> beam.Map(self._totals)
        shuffled = tables | "ShuffleByKey" >> self._shuffle
        commits = (
            shuffled.components
            | "Commit" >> beam.Map(_Commit(self._totals), attempt)
            | "CountCommitted" >> beam.Map(count_committed)
        )
        return (
            root
            | "Once" >> beam.Create([None])
            | "Publish"
            >> beam.Map(
                _Publish(self._totals, self._draft.started_at),
                attempt,
                AsList(commits),
                AsList(read),
            )
        )


@dataclass(frozen=True)
class _TotalsOf:
    amounts: tuple[str, ...]
    currency: str
    ids: tuple[str, ...]

    def __call__(self, table: pa.Table) -> TableTotals:
        return table_totals(table, self.amounts, self.currency, self.ids)

    @property
    def names(self) -> TotalNames:
        return TotalNames((InputTotals("rows", self.amounts, bool(self.currency)),))


@dataclass(frozen=True)
class _Commit:
    totals_of: _TotalsOf

    def __call__(self, element: tuple[int, Components], attempt: Attempt) -> ShardCommit:
        shard, components = element
        table = tidy(components.table)
        totals = ShardTotals(
            components=len(components.starts),
            result_rows=table.num_rows,
            result_components=len(components.starts),
            results=(self.totals_of(table),),
        )
        names = self.totals_of.names
        return commit_part(attempt, shard, Part(table, totals.to_json(names), self.totals_of.ids))


@dataclass(frozen=True)
class _Publish:
    totals_of: _TotalsOf
    at: datetime.datetime

    def __call__(
        self, _: None, attempt: Attempt, commits: list[ShardCommit], read: list[TableTotals]
    ) -> Manifest:
        names = self.totals_of.names
        shards = whole(attempt, commits)
        out = ShardTotals.sum(ShardTotals.from_json(commit.totals, names) for commit in shards)
        went_in = sum(read, NO_ROWS)
        expected = names.flat(0, went_in)
        actual = names.flat(0, out.results[0])
        controls = [
            Control(name=f"{n}: in = out", expected=expected.get(n, 0), actual=actual.get(n, 0))
            for n in expected | actual
        ]
        counts = {
            "rows_in": went_in.rows,
            "rows_out": out.result_rows,
            "components": out.components,
        }
        manifest = manifest_of(
            attempt,
            shards,
            read_to_json([ReadTotals(went_in)], names),
            out.published(names),
            counts,
            controls,
            self.at,
        )
        attempt.publish(manifest, self.at)
        return manifest
