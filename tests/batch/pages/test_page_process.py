"""Processes over pages of tables and of cursors, from the source to what is published."""

import datetime
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import new_class
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.support import page_jobs
from tests.support.page_jobs import (
    TIMEOUT,
    Calls,
    Feed,
    FeedItems,
    FeedParameters,
    FeedServer,
    RowItems,
    RowParameters,
    Rows,
    add_accounts,
    amount_of,
    feed_server,
    hook,
    make_accounts,
    published,
    rows,
    sqlite_file,
)

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.page_process import Page, PageProcess
from ledgerbeam.batch.define.process import Retry, RetryMode, instance_uri
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.batch.runs.resolve import checked_decision, decide
from ledgerbeam.io.commit.attempts import attempts, commits, fence, load_manifest
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Fence
from ledgerbeam.io.errors import UserError

SPLITS = ("count=10", "number=3", "range=15,40")


def feed_of(server: FeedServer, output: Path, start: str | None = None) -> Feed:
    return Feed(FeedParameters(feed=server.url, output=str(output), start=start))


def part_bytes(process: PageProcess[Any]) -> list[bytes]:
    """What is published, part by part."""
    uri = instance_uri(process)
    return [(Path(uri) / c.part.name).read_bytes() for c in load_manifest(uri).shards]


def in_process(
    process: PageProcess[Any], failpoint: str = "", kill: str = "", calls: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run in a process of its own, which may be killed at a point or in the call of a page."""
    environment = {**os.environ, "LEDGERBEAM_FAILPOINT": failpoint, "PAGE_JOBS_KILL": kill}
    if calls is not None:
        environment["PAGE_JOBS_CALLS"] = str(calls)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.page_jobs",
            process.name,
            process.parameters.model_dump_json(),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
        check=False,
    )


class TestRows:
    @pytest.mark.parametrize("split", SPLITS)
    def test_each_row_once_in_the_order_of_the_key(
        self, accounts: str, tmp_path: Path, split: str
    ) -> None:
        calls = hook(Rows, Calls())
        process = rows(accounts, tmp_path, split, page_rows=7)
        manifest = run(process)
        assert published(process) == list(range(1, 61))
        assert published(process, "amount") == [amount_of(id_) for id_ in range(1, 61)]
        assert manifest.counts["rows_in"] == manifest.counts["rows_out"] == 60
        assert manifest.totals["amount"] == 100 * sum(map(amount_of, range(1, 61)))
        assert [c.name for c in manifest.controls] == ["rows: in = out", "amount: in = out"]
        assert max(Counter(calls.names).values()) == 1
        assert sorted(set(published(process, "page"))) == sorted(calls.names)
        assert calls.peak <= 4
        assert verify(instance_uri(process), process) == manifest.controls

    def test_pages_are_called_by_their_keys(self, accounts: str, tmp_path: Path) -> None:
        process = rows(accounts, tmp_path, "count=25")
        run(process)
        assert list(dict.fromkeys(published(process, "page"))) == ["..25", "25..50", "50..60"]

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("ids", [[], [5]])
    def test_few_rows_or_none(self, tmp_path: Path, split: str, ids: list[int]) -> None:
        url = sqlite_file(tmp_path / "few.db")
        make_accounts(url, ids)
        process = rows(url, tmp_path, split)
        manifest = run(process)
        assert published(process) == ids
        assert manifest.counts["components"] == len(ids)
        assert load_manifest(instance_uri(process)).columns["page"] == "string"
        verify(instance_uri(process), process)
        assert run(process) == manifest

    @settings(
        max_examples=12,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        ids=st.lists(
            st.one_of(st.integers(0, 50), st.integers(-(2**40), 2**40)), max_size=60, unique=True
        ),
        split=st.sampled_from(["count=1", "count=7", "number=1", "number=5", "range=0,25,1000"]),
        page_rows=st.integers(1, 9),
    )
    def test_whatever_gaps_the_keys_have(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        ids: list[int],
        split: str,
        page_rows: int,
    ) -> None:
        folder = tmp_path_factory.mktemp("gaps")
        url = sqlite_file(folder / "gaps.db")
        make_accounts(url, ids)
        process = rows(url, folder, split, page_rows=page_rows)
        manifest = run(process)
        assert published(process) == sorted(ids)
        assert manifest.counts["rows_in"] == len(ids)


class TestItems:
    def test_each_fails_by_itself(self, accounts: str, tmp_path: Path) -> None:
        calls = hook(RowItems, Calls(wrong=lambda item: item["id"] in (3, 33)))
        process = RowItems(
            RowParameters(database=accounts, output=str(tmp_path), split="number=2", page_rows=7)
        )
        manifest = run(process)
        assert published(process) == [id_ for id_ in range(1, 61) if id_ not in (3, 33)]
        assert manifest.columns["id"] == "int64"
        assert manifest.counts["components"] == 60
        assert manifest.counts["failed"] == 2
        lost = [o.component for o in components_of(instance_uri(process), ComponentStatus.FAILURE)]
        assert lost == ["3", "33"]
        expected = 100 * (sum(map(amount_of, range(1, 61))) - amount_of(3) - amount_of(33))
        assert manifest.totals["amount"] == expected
        assert Counter(calls.names) == Counter(map(str, range(1, 61)))  # ValueError: no second try
        verify(instance_uri(process), process)

    def test_of_a_cursor(self, tmp_path: Path) -> None:
        with feed_server([[1, 2, 3], [4], [], range(5, 30)]) as server:
            hook(FeedItems, Calls(wrong=lambda item: item["id"] == 4))
            process = FeedItems(FeedParameters(feed=server.url, output=str(tmp_path)))
            manifest = run(process)
        assert published(process) == [str(id_) for id_ in range(1, 30) if id_ != 4]
        assert manifest.counts["failed"] == 1
        assert len(manifest.shards) == 4
        verify(instance_uri(process), process)

    def test_the_limit_of_items_in_flight_is_reached_and_kept(
        self, accounts: str, tmp_path: Path
    ) -> None:
        calls = hook(RowItems, Calls(hold=4))
        run(RowItems(RowParameters(database=accounts, output=str(tmp_path), split="count=3")))
        assert calls.peak == 4

    def test_a_key_that_identifies_none(self, tmp_path: Path) -> None:
        with feed_server([[1, 2], [3, 3]]) as server:
            process = FeedItems(FeedParameters(feed=server.url, output=str(tmp_path)))
            with pytest.raises(UserError, match=r"page 1: two items have the key \(id\) = 3"):
                run(process)


class TestInFlight:
    """Pages are worked on in parallel, though their source can only be walked."""

    @pytest.mark.parametrize("split", ["count=5", "number=1", "number=4"])
    def test_pages_of_a_table(self, accounts: str, tmp_path: Path, split: str) -> None:
        calls = hook(Rows, Calls(hold=4))
        run(rows(accounts, tmp_path, split, page_rows=3))
        assert calls.peak == 4

    def test_pages_of_a_cursor(self, tmp_path: Path) -> None:
        with feed_server([[n] for n in range(12)]) as server:
            calls = hook(Feed, Calls(hold=4))
            process = feed_of(server, tmp_path)
            run(process)
            assert calls.peak == 4
            assert published(process) == list(range(12))
            assert server.asked == [None, *(f"c{n}" for n in range(1, 12))]

    def test_a_repeated_bundle_works_on_no_page_again(self, accounts: str, tmp_path: Path) -> None:
        calls = hook(Rows, Calls())
        for split in SPLITS:
            run(rows(accounts, tmp_path / split, split), ["--direct_runner_bundle_repeat=2"])
            assert max(Counter(calls.names).values()) == 1
            calls.names.clear()


class TestFailures:
    def test_a_failed_page_does_not_end_the_walk(self, tmp_path: Path) -> None:
        with feed_server([[n] for n in range(8)]) as server:
            calls = hook(Feed, Calls(wrong=lambda page: page.name == "2"))
            process = feed_of(server, tmp_path / "disturbed")
            with pytest.raises(UserError, match=r"1 of 8 components failed.*first 2 \(ValueError"):
                run(process)
            assert sorted(calls.names) == [str(n) for n in range(8)]
            asked = len(server.asked)

            again = hook(Feed, Calls())
            manifest = run(process)
            assert again.names == ["2"]
            assert server.asked[asked:] == ["c2"]
            assert published(process) == list(range(8))
            assert manifest.counts["failed"] == 0
            (told,) = [o for o in components_of(instance_uri(process)) if o.error]
            assert (told.component, told.status, told.tries) == ("2", ComponentStatus.SUCCESS, 2)
            verify(instance_uri(process), process)

            undisturbed = feed_of(server, tmp_path / "undisturbed")
            run(undisturbed)
            assert part_bytes(process) == part_bytes(undisturbed)

    @pytest.mark.parametrize("split", SPLITS)
    def test_what_failed_is_retried_and_merged(
        self, accounts: str, tmp_path: Path, split: str
    ) -> None:
        bad = {17, 42}
        calls = hook(
            Rows, Calls(wrong=lambda page: bool(bad & {item["id"] for item in page.items}))
        )
        process = rows(accounts, tmp_path / "disturbed", split, page_rows=5)
        with pytest.raises(UserError, match=r"2 of 1?[0-9] components failed"):
            run(process)
        bad.remove(17)
        with pytest.raises(UserError, match=r"1 of 1?[0-9] components failed"):
            run(process)
        bad.clear()
        before = len(calls.names)
        manifest = run(process)
        assert len(calls.names) == before + 1
        assert manifest.counts["rows_in"] == manifest.counts["rows_out"] == 60
        verify(instance_uri(process), process)
        undisturbed = rows(accounts, tmp_path / "undisturbed", split, page_rows=5)
        run(undisturbed)
        assert part_bytes(process) == part_bytes(undisturbed)

    def test_failed_items_are_retried_and_merged(self, accounts: str, tmp_path: Path) -> None:
        bad = set(range(10, 20))
        calls = hook(RowItems, Calls(wrong=lambda item: item["id"] in bad))

        def process(folder: str) -> RowItems:
            output = str(tmp_path / folder)
            return RowItems(RowParameters(database=accounts, output=output, split="number=2"))

        with pytest.raises(UserError, match="10 of 60 components failed, and 10% may"):
            run(process("disturbed"))
        bad = {11}
        calls.names.clear()
        manifest = run(process("disturbed"))
        assert sorted(calls.names) == [str(n) for n in range(10, 20)]
        assert manifest.counts["failed"] == 1
        assert manifest.counts["rows_in"] == 60
        verify(instance_uri(process("disturbed")), process("disturbed"))
        run(process("undisturbed"))
        assert part_bytes(process("disturbed")) == part_bytes(process("undisturbed"))

    def test_of_failed_items_some_are_chosen(self, accounts: str, tmp_path: Path) -> None:
        bad = set(range(10, 20))
        calls = hook(RowItems, Calls(wrong=lambda item: item["id"] in bad))
        output = str(tmp_path / "chosen")
        process = RowItems(RowParameters(database=accounts, output=output, split="number=2"))
        with pytest.raises(UserError, match="10 of 60 components failed, and 10% may"):
            run(process)
        bad.clear()
        calls.names.clear()
        chosen = [str(number) for number in range(10, 15)]
        manifest = run(process, components=chosen)
        assert sorted(calls.names) == chosen
        assert (manifest.counts["failed"], manifest.counts["rows_in"]) == (5, 60)
        verify(instance_uri(process), process)

    def test_a_fetch_is_tried_again(self, tmp_path: Path) -> None:
        with feed_server([[n] for n in range(4)]) as server:
            server.failing = {"c2": 1}
            process = feed_of(server, tmp_path)
            run(process)
            assert published(process) == [0, 1, 2, 3]
            assert Counter(server.asked)["c2"] == 2

    def test_a_fetch_that_fails_ends_the_attempt_and_keeps_what_is_done(
        self, tmp_path: Path
    ) -> None:
        with feed_server([[n] for n in range(6)]) as server:
            server.failing = {"c3": 2}
            calls = hook(Feed, Calls())
            process = feed_of(server, tmp_path)
            with pytest.raises(UserError) as raised:
                run(process)
            assert "page 3, cursor 'c3': can't be fetched: HTTPError: HTTP Error 503" in str(
                raised.value
            )
            assert "\n" not in str(raised.value)
            assert sorted(calls.names) == ["0", "1", "2"]
            asked = len(server.asked)
            run(process)
            assert sorted(calls.names) == [str(n) for n in range(6)]
            assert server.asked[asked:] == ["c3", "c4", "c5"]

    def test_a_walk_in_circles(self, tmp_path: Path) -> None:
        with feed_server([[n] for n in range(5)]) as server:
            server.loop = True
            with pytest.raises(UserError, match="page 5: its cursor 'c1' was that of an earlier"):
                run(feed_of(server, tmp_path))

    def test_a_start_at_a_given_cursor(self, tmp_path: Path) -> None:
        with feed_server([[n] for n in range(6)]) as server:
            process = feed_of(server, tmp_path, start="c4")
            run(process)
            assert published(process) == [4, 5]

    def test_a_page_that_is_called_once_at_most(self, accounts: str, tmp_path: Path) -> None:
        class Once(Rows):
            retry = Retry(RetryMode.AT_MOST_ONCE)

        calls = hook(Rows, Calls(wrong=lambda page: page.name == "10..20"))
        process = Once(rows(accounts, tmp_path, "number=2", page_rows=10).parameters)
        with pytest.raises(UserError, match="1 of 6 components failed"):
            run(process)
        assert max(Counter(calls.names).values()) == 1


class TestDefinitions:
    def refused(self, message: str, **members: Any) -> None:
        with pytest.raises(TypeError, match=message):
            new_class(
                "Wrong",
                (PageProcess[RowParameters],),
                exec_body=lambda namespace: namespace.update({"name": "wrong"} | members),
            )

    def test_one_way_to_execute(self) -> None:
        self.refused("has neither execute and execute_item")
        both = {"execute": Rows.execute, "execute_item": RowItems.execute_item}
        self.refused("has both execute and execute_item", **both)

    def test_results(self) -> None:
        self.refused("results is missing", execute=Rows.execute)
        page = pa.schema([("page", pa.string())])
        self.refused("results has a column page", execute=Rows.execute, results=page)

    def test_the_key_of_items(self, tmp_path: Path) -> None:
        parameters = FeedParameters(feed="http://127.0.0.1:9/", output=str(tmp_path))
        nameless = type("Nameless", (FeedItems,), {"item_key": ()})
        with pytest.raises(TypeError, match="item_key is missing"):
            run(nameless(parameters))
        taken = type("Taken", (FeedItems,), {"results": pa.schema([("id", pa.int64())])})
        with pytest.raises(TypeError, match="results has id, which is in the key"):
            run(taken(parameters))

    def test_a_page_by_hand(self) -> None:
        page = Page("1", items=[{"id": 7}])
        assert list(Feed.execute(Feed.__new__(Feed), page)) == [{"id": 7}]
        with pytest.raises(TypeError, match="use items"):
            _ = page.table


class TestRestart:
    """A process that is killed at any point, and run again."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("split", "point"),
        [
            ("count=10", "pages: before"),
            ("count=10", "pages: cut"),
            ("count=10", "commit: files written"),
            ("count=10", "commit: marker made"),
            ("count=10", "publish: ended"),
            ("count=10", "call"),
            ("number=3", "pages: cut"),
            ("number=3", "commit: marker made"),
            ("number=3", "call"),
        ],
    )
    def test_of_a_table(self, accounts: str, tmp_path: Path, split: str, point: str) -> None:
        undisturbed = rows(accounts, tmp_path / "undisturbed", split, page_rows=10)
        run(undisturbed)
        process = rows(accounts, tmp_path / "disturbed", split, page_rows=10)
        first, second = tmp_path / "first", tmp_path / "second"
        if point == "call":
            kill = "30..40" if split == "count=10" else "40..50"
            died = in_process(process, kill=kill, calls=first)
        else:
            died = in_process(process, failpoint=point, calls=first)
        assert died.returncode == -9, died.stderr
        committed = commits(instance_uri(process), [1])
        # What comes in between changes no page that was cut before.
        add_accounts(accounts, [1_000])
        done = in_process(process, calls=second)
        assert done.returncode == 0, done.stderr
        again = commits(instance_uri(process), [2])
        assert not again.keys() & committed.keys()
        is_in = published(process)[-1] == 1_000
        assert published(process) == published(undisturbed) + [1_000] * is_in
        unchanged = len(part_bytes(undisturbed)) - (is_in and split == "number=3")
        assert part_bytes(process)[:unchanged] == part_bytes(undisturbed)[:unchanged]
        called = Counter((second.read_text() if second.exists() else "").split())
        assert max(called.values(), default=0) <= 1
        if split == "count=10":
            of_committed = {f"{10 * n or ''}..{10 * n + 10}" for n in committed}
            assert not of_committed & called.keys()
        verify(instance_uri(process), process)

    @pytest.mark.slow
    @pytest.mark.parametrize("point", ["commit: files written", "commit: marker made", "call"])
    def test_of_a_cursor(self, tmp_path: Path, point: str) -> None:
        with feed_server([[n] for n in range(12)]) as server:
            process = feed_of(server, tmp_path / "disturbed")
            if point == "call":
                died = in_process(process, kill="7")
            else:
                died = in_process(process, failpoint=point)
            assert died.returncode == -9, died.stderr
            committed = commits(instance_uri(process), [1])
            asked = len(server.asked)
            calls = hook(Feed, Calls())
            run(process)
            assert sorted(calls.names) == sorted(str(n) for n in range(12) if n not in committed)
            # Pages that are committed aren't fetched again, wherever they are.
            assert len(server.asked) - asked == 12 - len(committed)
            undisturbed = feed_of(server, tmp_path / "undisturbed")
            run(undisturbed)
            assert part_bytes(process) == part_bytes(undisturbed)

    @pytest.mark.slow
    def test_a_page_whose_one_call_was_killed_is_unknown(
        self, accounts: str, tmp_path: Path
    ) -> None:
        process = page_jobs.OnceRows(rows(accounts, tmp_path, "number=2").parameters)
        died = in_process(process, kill="10..20", calls=tmp_path / "calls")
        assert died.returncode == -9, died.stderr
        with pytest.raises(UserError, match=r"0 of 6 components failed and [1-4] are unknown"):
            run(process)
        unknown = list(components_of(instance_uri(process), ComponentStatus.UNKNOWN))
        assert "10..20" in [outcome.component for outcome in unknown]
        self.check_resolved(process, [outcome.component for outcome in unknown], tmp_path)

    def check_resolved(
        self, process: page_jobs.OnceRows, unknown: Sequence[str], tmp_path: Path
    ) -> None:
        """One was found not to have been called, and is; the others were, and aren't."""
        uri, again = instance_uri(process), unknown[0]
        calls = hook(page_jobs.OnceRows, Calls())
        undisturbed = page_jobs.OnceRows(
            process.parameters.model_copy(update={"output": str(tmp_path / "undisturbed")})
        )
        run(undisturbed)
        calls.names.clear()
        now = datetime.datetime.now(datetime.UTC)
        decide(
            *checked_decision(
                uri, type(process), again, ComponentStatus.FAILURE, None, "me", "no call", now
            )
        )
        published = read_published(instance_uri(undisturbed)).to_table()
        for component in unknown[1:]:
            of_page = pc.equal(published["page"], component)
            rows_of_page = tmp_path / f"{component}.parquet"
            pq.write_table(published.filter(of_page), rows_of_page)
            given = (ComponentStatus.SUCCESS, str(rows_of_page), "me", "a call", now)
            decide(*checked_decision(uri, type(process), component, *given))
        run(process)
        assert calls.names == [again]
        assert part_bytes(process) == part_bytes(undisturbed)

    def test_pages_between_committed_ones(self, accounts: str, tmp_path: Path) -> None:
        bad = {"10..20", "40..50"}
        calls = hook(Rows, Calls(wrong=lambda page: page.name in bad))
        process = rows(accounts, tmp_path, "count=10")
        with pytest.raises(UserError, match="2 of 6"):
            run(process)
        for shard in (2, 5):
            Path(instance_uri(process), "attempt-1", f"committed-{shard:05d}.json").unlink()
        engine = sa.create_engine(accounts)
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM account WHERE id IN (25, 55)"))
            connection.execute(sa.text("INSERT INTO account VALUES (0, 1), (61, 1)"))
        engine.dispose()
        bad.clear()
        calls.names.clear()
        run(process)
        assert sorted(calls.names) == ["10..20", "20..30", "40..50", "50..60"]
        assert published(process) == [n for n in range(1, 61) if n not in (25, 55)]


class TestFence:
    """A walk that was given up can commit no page, however far it is."""

    def test_of_a_walk(self, accounts: str, tmp_path: Path) -> None:
        bad = {"20..30"}
        hook(Rows, Calls(wrong=lambda page: page.name in bad))
        process = rows(accounts, tmp_path, "count=10")
        with pytest.raises(UserError, match="1 of 6"):
            run(process)
        (record,) = attempts(instance_uri(process))
        again = record.model_copy(update={"number": 2})
        ending = fence(instance_uri(process), again, self.fence(record))
        assert ending.outcome == "fenced"
        folder = Path(instance_uri(process), "attempt-2")
        names = sorted(int(path.stem[-5:]) for path in folder.glob("committed-*.json"))
        # The failed one may be committed again; what succeeded won't be.
        assert names == [2, *range(6, 6 + 256)]

    def fence(self, record: Any) -> Fence:
        return Fence(fenced_at=record.started_at, who="somebody", why="a test")
