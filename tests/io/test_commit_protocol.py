"""The commit protocol under fire: real processes that die, stop, race and come back too late."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.support.launchers import WRITES, Launchers, instance_of, parameters_of, write_input
from tests.support.processes import OneClientFails
from tests.support.reading import instance_uri, record_of, tree

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_of
from ledgerbeam.io.commit.attempts import (
    attempts,
    commits,
    find_manifest,
    load_manifest,
    start_attempt,
)
from ledgerbeam.io.commit.published import read_part, read_published
from ledgerbeam.io.commit.records import Manifest, ShardCommit
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.delivery_inputs import DELIVERY_QUANTITY
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking
from ledgerbeam.rules.components import Components

DECIDED = ("ended.json", "manifest.json", "cleanup.json")
"""Once the first of them is made, the attempt has published, even if its process dies there."""

FAILING = 2
"""The shard of the component that fails."""

MOMENTS = ("before", "inside", "after")
"""Of a creation; inside it the object is written whole, but hasn't got its name yet."""


@pytest.fixture(scope="module")
def launchers() -> Iterator[Launchers]:
    warm = Launchers()
    yield warm
    warm.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an input."""
    write_input(tmp_path / "trades.csv")
    return tmp_path


def parts(manifest: Manifest) -> list[str]:
    """A hash of each."""
    return [commit.part.sha256 for commit in manifest.shards]


def rejects(manifest: Manifest) -> list[tuple[int, str, str]]:
    """All rejected rows, less the folder they were in."""
    of_shards = [commit.rejects for commit in manifest.shards if commit.rejects is not None]
    files = [*of_shards, *manifest.rejects]
    refused = [read_part(instance_uri(manifest), file) for file in files]
    rows = [row for table in refused for row in table.to_pylist()]
    return sorted((row["row"], row["raw"], row["reason"]) for row in rows)


def outcomes(manifest: Manifest) -> list[Outcome]:
    """All outcomes, less how often components were tried."""
    files = [commit.outcomes for commit in manifest.shards if commit.outcomes is not None]
    tables = [read_part(instance_uri(manifest), file) for file in files]
    return [outcome._replace(tries=0) for table in tables for outcome in outcomes_of(table)]


def spilled(folder: Path) -> list[Path]:
    """Folders of spilled pieces, each in the folder of its process."""
    return list((folder / "spill").glob("ledgerbeam-*/spill-*"))


def check_published(folder: Path, undisturbed: Manifest) -> Manifest:
    """Whatever happened before: what is published is what an undisturbed run publishes."""
    uri = str(instance_of(folder))
    manifest = load_manifest(uri)
    assert parts(manifest) == parts(undisturbed)
    assert rejects(manifest) == rejects(undisturbed)
    assert outcomes(manifest) == outcomes(undisturbed)
    assert (manifest.counts, manifest.totals) == (undisturbed.counts, undisturbed.totals)
    verify(uri, OneClientFails(parameters_of(folder)))
    assert read_published(uri).count_rows() == undisturbed.counts["rows_out"]
    assert manifest.counts["failed"] == 1
    return manifest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_input(folder / "trades.csv")
    return run(OneClientFails(parameters_of(folder)))


class TestCrashes:
    def test_these_are_all_writes(self, folder: Path, launchers: Launchers) -> None:
        launcher = launchers.start(folder)
        assert launcher.wait() == "0", launcher.error
        assert sorted((folder / "writes").read_text().split()) == sorted(WRITES)
        files = {Path(name).name for name in tree(instance_of(folder))}
        assert files == set(WRITES)

    @pytest.mark.parametrize("moment", MOMENTS)
    @pytest.mark.parametrize("at", WRITES)
    def test_nothing_or_everything_is_published(
        self, folder: Path, launchers: Launchers, undisturbed: Manifest, at: str, moment: str
    ) -> None:
        instance = instance_of(folder)
        assert launchers.start(folder, at, moment).wait() == str(-signal.SIGKILL)
        left = tree(instance)
        assert (f"attempt-1/{at}" in left or at in left) == (moment == "after")
        assert bool(spilled(folder)) == (at not in ("attempt.json", "cleanup.json"))
        is_published = "manifest.json" in left
        if is_published:
            check_published(folder, undisturbed)
        else:
            assert find_manifest(str(instance)) is None
            with pytest.raises(UserError, match="nothing is published there"):
                read_published(str(instance))

        committed = {shard for shard in range(3) if f"attempt-1/committed-{shard:05d}.json" in left}
        was_started = "attempt-1/attempt.json" in left
        second = launchers.start(folder)
        assert second.wait() == "0", second.error
        manifest = check_published(folder, undisturbed)
        was_decided = "attempt-1/ended.json" in left
        assert was_decided == (at in DECIDED[1:] or (at, moment) == ("ended.json", "after"))
        number = 1 if was_decided or not was_started else 2
        assert manifest.attempt.number == number
        # What has failed is tried again, and nothing else is done twice.
        kept = {0, 1, 2} if number == 1 else committed - {FAILING}
        for commit in manifest.shards:
            assert commit.attempt == (1 if commit.shard in kept else number)
        again = tree(instance)
        assert {name: again[name] for name in left} == left
        redone = {name for name in again if name.startswith("attempt-2/part-")}
        assert len(redone) == (3 - len(kept) if number == 2 else 0)
        assert f"attempt-{number}/cleanup.json" in again
        if not was_decided:
            assert spilled(folder) == []

    def test_crash_after_crash(
        self, folder: Path, launchers: Launchers, undisturbed: Manifest
    ) -> None:
        crashes = {"committed-00001.json": "after", WRITES[1]: "after", "ended.json": "before"}
        for at, moment in crashes.items():
            launchers.start(folder, at, moment).wait()
        assert find_manifest(str(instance_of(folder))) is None
        assert launchers.start(folder).wait() == "0"
        manifest = check_published(folder, undisturbed)
        assert manifest.attempt.number == 4
        assert manifest.shards[1].attempt == 1
        assert manifest.shards[0].attempt in (1, 3)
        records = attempts(str(instance_of(folder)))
        assert [record.number for record in records] == [1, 2, 3, 4]

    def test_after_a_crash_on_other_input_everything_is_done_anew(
        self, folder: Path, launchers: Launchers, undisturbed: Manifest
    ) -> None:
        assert launchers.start(folder, "ended.json").wait() == str(-signal.SIGKILL)
        write_input(folder / "trades.csv", seed=8)
        assert launchers.start(folder).wait() == "0"
        manifest = load_manifest(str(instance_of(folder)))
        assert [commit.attempt for commit in manifest.shards] == [2, 2, 2]
        assert manifest.totals != undisturbed.totals
        verify(str(instance_of(folder)), OneClientFails(parameters_of(folder)))

    def test_what_was_refused_is_allowed_and_nothing_is_done_twice(
        self, folder: Path, launchers: Launchers, undisturbed: Manifest
    ) -> None:
        first = launchers.start(folder, max_rejects=2)
        assert first.wait() == "1"
        assert first.error.startswith("nothing published: 3 rows rejected")
        second = launchers.start(folder)
        assert second.wait() == "0", second.error
        manifest = check_published(folder, undisturbed)
        assert [commit.attempt for commit in manifest.shards] == [1, 1, 2]


class TestRaces:
    @pytest.mark.parametrize(
        "at",
        ["attempt.json", "part-00001-of-00003.parquet", "committed-00001.json", *DECIDED[:2]],
    )
    @pytest.mark.parametrize("moment", ["before", "inside"])
    def test_two_launchers(
        self, folder: Path, launchers: Launchers, undisturbed: Manifest, at: str, moment: str
    ) -> None:
        both = [launchers.start(folder, at, moment, signal.SIGSTOP) for _ in range(2)]
        assert [launcher.wait() for launcher in both] == ["stopped", "stopped"]
        for launcher in both:
            launcher.resume()
        codes = [launcher.wait() for launcher in both]
        manifest = check_published(folder, undisturbed)
        assert "0" in codes
        for launcher, code in zip(both, codes, strict=True):
            if code != "0":
                assert f"attempt {manifest.attempt.number} has published" in launcher.error
        assert [record.number for record in attempts(str(instance_of(folder)))] == [1, 2]
        assert spilled(folder) == []

    @pytest.mark.parametrize(
        ("at", "moment"),
        [(at, moment) for at in WRITES[1:-3] for moment in ("before", "after")]
        + [("ended.json", "before")],
    )
    def test_who_comes_too_late_changes_nothing(
        self, folder: Path, launchers: Launchers, undisturbed: Manifest, at: str, moment: str
    ) -> None:
        late = launchers.start(folder, at, moment, signal.SIGSTOP)
        assert late.wait() == "stopped"
        second = launchers.start(folder)
        assert second.wait() == "0", second.error
        published = tree(instance_of(folder))
        late.resume()
        assert late.wait() == "1"
        assert "attempt 2 has published in the meantime; nothing of attempt 1 counts" in late.error
        after = tree(instance_of(folder))
        # What another thread was writing when its process stopped has got its name since.
        named = {name: data for name, data in published.items() if not name.endswith(".tmp")}
        assert {name: after[name] for name in named} == named
        assert check_published(folder, undisturbed).attempt.number == 2

    def test_launchers_take_numbers_of_their_own(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: start_attempt(str(tmp_path), record_of(1)), range(24)))
        assert sorted(attempt.record.number for attempt in made) == list(range(1, 25))


class TestRetries:
    """A shard that is executed twice within an attempt."""

    def commit_of(self, uri: Path, table: pa.Table) -> ShardCommit:
        attempt = start_attempt(str(uri), record_of(1))
        attempt.record = attempt.record.model_copy(update={"number": 1})
        part = attempt.write_part(0, table)
        return attempt.commit(
            ShardCommit(shard=0, attempt=1, code_version="1", part=part, totals={})
        )

    def test_the_same_result(self, tmp_path: Path) -> None:
        table = pa.table({"number": [1, 2]})
        first = self.commit_of(tmp_path, table)
        before = tree(tmp_path / "attempt-1")
        assert self.commit_of(tmp_path, table) == first
        assert tree(tmp_path / "attempt-1") == before

    def test_another_result_after_the_marker(self, tmp_path: Path) -> None:
        first = self.commit_of(tmp_path, pa.table({"number": [1, 2]}))
        assert self.commit_of(tmp_path, pa.table({"number": [3]})) == first
        assert commits(str(tmp_path), [1]) == {0: first}
        assert read_part(str(tmp_path), first.part).to_pydict() == {"number": [1, 2]}

    def test_another_result_before_the_marker(self, tmp_path: Path) -> None:
        """The marker names what its own worker wrote, not what a dead one left."""
        start_attempt(str(tmp_path), record_of(1)).write_part(0, pa.table({"number": [1, 2]}))
        second = self.commit_of(tmp_path, pa.table({"number": [3]}))
        assert read_part(str(tmp_path), second.part).to_pydict() == {"number": [3]}

    def test_the_latest_of_several_attempts_counts(self, tmp_path: Path) -> None:
        for number in (1, 2):
            attempt = start_attempt(str(tmp_path), record_of(1))
            assert attempt.record.number == number
            part = attempt.write_part(0, pa.table({"number": [number]}))
            attempt.commit(
                ShardCommit(shard=0, attempt=number, code_version="1", part=part, totals={})
            )
        assert commits(str(tmp_path), [1, 2])[0].attempt == 2
        assert commits(str(tmp_path), [1])[0].attempt == 1
        assert commits(str(tmp_path), []) == {}


class OneTooFew(DeliveryMarking):
    """Loses one unit of what is to be delivered."""

    def execute_components(self, components: Components) -> pa.Table:
        """Mark, and lose."""
        marked = super().execute_components(components)
        delivered = marked.column(DELIVERY_QUANTITY)
        largest = pc.equal(delivered, pc.max(delivered))
        less = pc.subtract(delivered, largest.cast(pa.int64()))
        return marked.set_column(marked.num_columns - 1, DELIVERY_QUANTITY, less)


class OneTradeLost(DeliveryMarking):
    """Leaves a quantity out of what comes out of one shard."""

    def result_totals(self, results: Components) -> dict[str, int]:
        """Count, less one."""
        totals = super().result_totals(results)
        if "C1" in results.values("client_code"):
            totals["quantity"] -= 1
        return totals


class TestControls:
    @pytest.mark.parametrize(
        ("definition", "control"),
        [
            (OneTooFew, "delivery quantity = net quantity of the components: "),
            (OneTradeLost, "quantity: in = out + rejected: "),
        ],
    )
    def test_what_does_not_balance_is_not_published(
        self, folder: Path, definition: type[DeliveryMarking], control: str
    ) -> None:
        with pytest.raises(UserError, match="nothing published, the control totals") as raised:
            run(definition(parameters_of(folder)))
        assert control in str(raised.value)
        assert "\n" not in str(raised.value)
        assert find_manifest(str(instance_of(folder))) is None
