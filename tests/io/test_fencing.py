"""Attempts that are given up: what of them still runs has no effect, and who was faster wins."""

import datetime
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.launchers import (
    WRITES,
    Launcher,
    Launchers,
    instance_of,
    parameters_of,
    write_input,
)
from tests.support.processes import OneClientFails
from tests.support.reading import record_of, tree

from ledgerbeam.batch.attempt.run import clean_up, run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.commit.attempts import (
    WALK_WINDOW,
    Attempt,
    attempts,
    commits,
    ending_of,
    ending_uri,
    fence,
    find_manifest,
    load_manifest,
    start_attempt,
)
from ledgerbeam.io.commit.records import Control, Ending, Fence, Manifest, ShardCommit
from ledgerbeam.io.errors import FencedError, UserError
from ledgerbeam.io.storage import stores, uris

NOW = datetime.datetime(2026, 11, 20, 18, tzinfo=datetime.UTC)
BY = Fence(fenced_at=NOW, who="reconcile@host", why="its lease has ended")
GIVEN_UP = "the attempt was given up by reconcile@host: its lease has ended: nothing that it "


@pytest.fixture(scope="module")
def launchers() -> Iterator[Launchers]:
    warm = Launchers()
    yield warm
    warm.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_input(tmp_path / "trades.csv")
    return tmp_path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Hashes of the parts of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_input(folder / "trades.csv")
    return parts_of(run(OneClientFails(parameters_of(folder))))


def parts_of(manifest: Manifest) -> list[str]:
    return [commit.part.sha256 for commit in manifest.shards]


def give_up(folder: Path) -> Ending:
    """What who reconciles does with an attempt that nobody answers for."""
    uri = str(instance_of(folder))
    (record,) = attempts(uri)
    ending = fence(uri, record, BY)
    clean_up(OneClientFails(parameters_of(folder)), Attempt(uri, record))
    return ending


def counts(name: str) -> bool:
    """Whether a file can change what was done: parts and the like do only once they are named."""
    return not name.rpartition("/")[2].startswith(("part-", "outcomes-", "rejects-", "."))


def stopped(launchers: Launchers, folder: Path, at: str, moment: str) -> Launcher:
    launcher = launchers.start(folder, at, moment, signal.SIGSTOP)
    assert launcher.wait() == "stopped"
    return launcher


# Of what was made last, nothing is left that could come too late.
MARKERS = [at for at in WRITES if at.startswith("committed")]
UNDECIDED = [(at, "before") for at in WRITES[1:-2]]
UNDECIDED += [(at, moment) for at in MARKERS for moment in ("inside", "after")]
UNDECIDED += [("ended.json", "inside")]
DECIDED = [("ended.json", "after"), ("manifest.json", "before"), ("manifest.json", "inside")]


class TestZombies:
    @pytest.mark.parametrize(("at", "moment"), UNDECIDED)
    def test_a_zombie_has_no_effect(
        self, folder: Path, launchers: Launchers, parts: list[str], at: str, moment: str
    ) -> None:
        instance = instance_of(folder)
        zombie = stopped(launchers, folder, at, moment)
        assert give_up(folder).outcome == "fenced"
        before = set(commits(str(instance), [1]))
        left = tree(instance)

        zombie.resume()
        assert zombie.wait() == "1"
        assert GIVEN_UP in zombie.error
        assert "defect" not in zombie.error
        assert "\n" not in zombie.error
        woken = tree(instance)
        assert {name for name in woken.keys() - left.keys() if counts(name)} == set()
        assert {name: woken[name] for name in left if counts(name)} == {
            name: data for name, data in left.items() if counts(name)
        }
        assert set(commits(str(instance), [1])) == before
        assert find_manifest(str(instance)) is None

        second = launchers.start(folder)
        assert second.wait() == "0", second.error
        manifest = load_manifest(str(instance))
        assert manifest.attempt.number == 2
        assert parts_of(manifest) == parts
        assert {c.shard for c in manifest.shards if c.attempt == 1} == before - {2}
        verify(str(instance), OneClientFails(parameters_of(folder)))

    @pytest.mark.parametrize(
        ("at", "moment"),
        [
            ("part-00001-of-00003.parquet", "before"),
            ("committed-00000.json", "before"),
            ("committed-00001.json", "inside"),
            ("committed-00002.json", "after"),
            ("ended.json", "before"),
            ("ended.json", "inside"),
        ],
    )
    def test_a_zombie_that_wakes_after_another_attempt_has_published(
        self, folder: Path, launchers: Launchers, parts: list[str], at: str, moment: str
    ) -> None:
        zombie = stopped(launchers, folder, at, moment)
        give_up(folder)
        second = launchers.start(folder)
        assert second.wait() == "0", second.error
        published = {name: data for name, data in tree(instance_of(folder)).items() if counts(name)}
        zombie.resume()
        assert zombie.wait() == "1"
        assert GIVEN_UP in zombie.error
        after = {name: data for name, data in tree(instance_of(folder)).items() if counts(name)}
        assert after == published
        assert parts_of(load_manifest(str(instance_of(folder)))) == parts

    @pytest.mark.parametrize(("at", "moment"), DECIDED)
    def test_who_was_faster_has_published(
        self, folder: Path, launchers: Launchers, parts: list[str], at: str, moment: str
    ) -> None:
        """The fence comes too late: it makes the publication complete instead."""
        instance = instance_of(folder)
        slow = stopped(launchers, folder, at, moment)
        assert find_manifest(str(instance)) is None
        ending = give_up(folder)
        assert ending.outcome == "published"
        manifest = load_manifest(str(instance))
        assert (manifest.attempt.number, parts_of(manifest)) == (1, parts)
        left = tree(instance)
        slow.resume()
        assert slow.wait() == "0", slow.error
        woken = tree(instance)
        assert woken == {n: d for n, d in left.items() if not n.endswith(".tmp")}
        verify(str(instance), OneClientFails(parameters_of(folder)))

    @pytest.mark.parametrize(("at", "moment"), DECIDED)
    def test_a_dead_attempt_that_had_decided_is_completed_by_the_next_run(
        self, folder: Path, launchers: Launchers, parts: list[str], at: str, moment: str
    ) -> None:
        assert launchers.start(folder, at, moment).wait() == str(-signal.SIGKILL)
        instance = str(instance_of(folder))
        assert find_manifest(instance) is None
        manifest = run(OneClientFails(parameters_of(folder)))
        assert (manifest.attempt.number, parts_of(manifest)) == (1, parts)
        assert load_manifest(instance) == manifest
        assert is_cleanup_claimed(Attempt(instance, manifest.attempt))
        assert len(attempts(instance)) == 1


def is_cleanup_claimed(attempt: Attempt) -> bool:
    return stores.stat_of(uris.join(attempt.uri, "cleanup.json")) is not None


def begin(root: str, shards: int = 4) -> Attempt:
    return start_attempt(root, record_of(shards))


def commit(attempt: Attempt, shard: int, value: int = 0) -> ShardCommit:
    part = attempt.write_part(shard, pa.table({"value": [value]}))
    number = attempt.record.number
    return attempt.commit(
        ShardCommit(shard=shard, attempt=number, code_version="1", part=part, totals={})
    )


def manifest_of(attempt: Attempt, shards: list[ShardCommit], **others: object) -> Manifest:
    return Manifest.model_validate(
        {
            "attempt": attempt.record,
            "published_at": NOW,
            "shards": shards,
            "rejects": [],
            "columns": {"value": "int64"},
            "read": {},
            "totals": {},
            "counts": {},
            "controls": [],
            **others,
        }
    )


class TestFence:
    """On every kind of storage."""

    def test_no_shard_is_committed_any_more(self, root: str) -> None:
        attempt = begin(root)
        kept = commit(attempt, 1)
        ending = fence(root, attempt.record, BY)
        assert (ending.outcome, ending.fence) == ("fenced", BY)
        assert ending_of(attempt.uri) == ending
        for shard in (0, 2, 3):
            with pytest.raises(FencedError, match=GIVEN_UP):
                commit(attempt, shard)
        assert commit(attempt, 1, value=7) == kept
        assert commits(root, [1]) == {1: kept}

    def test_nothing_is_published_any_more(self, root: str) -> None:
        attempt = begin(root)
        shards = [commit(attempt, shard) for shard in range(4)]
        fence(root, attempt.record, BY)
        with pytest.raises(FencedError, match=GIVEN_UP):
            attempt.publish(manifest_of(attempt, shards), NOW)
        assert find_manifest(root) is None

    def test_another_attempt_goes_on(self, root: str) -> None:
        first = begin(root, 2)
        kept = commit(first, 1)
        fence(root, first.record, BY)
        second = begin(root, 2)
        assert second.record.number == 2
        assert commits(root, [1, 2]) == {1: kept}
        shards = [commit(second, 0), kept]
        second.publish(manifest_of(second, shards), NOW)
        assert load_manifest(root).attempt.number == 2
        with pytest.raises(FencedError, match=GIVEN_UP):
            first.publish(manifest_of(first, shards), NOW)

    def test_who_has_published_cannot_be_given_up(self, root: str) -> None:
        attempt = begin(root, 1)
        manifest = manifest_of(attempt, [commit(attempt, 0)])
        attempt.publish(manifest, NOW)
        ending = fence(root, attempt.record, BY)
        assert (ending.outcome, ending.manifest) == ("published", manifest)
        attempt.publish(manifest, NOW)
        assert load_manifest(root) == manifest

    def test_who_died_before_the_manifest_has_published(self, root: str) -> None:
        attempt = begin(root, 1)
        manifest = manifest_of(attempt, [commit(attempt, 0)])
        ending = Ending(outcome="published", at=NOW, manifest=manifest)
        assert stores.create(ending_uri(attempt.uri), ending.to_json())
        assert find_manifest(root) is None
        assert fence(root, attempt.record, BY) == ending
        assert load_manifest(root) == manifest

    def test_who_has_failed_cannot_go_on_elsewhere(self, root: str) -> None:
        """A launcher has recorded that its attempt failed, and a worker of it lives on."""
        attempt = begin(root, 2)
        attempt.fail("the network was down", NOW)
        assert fence(root, attempt.record, BY).outcome == "failed"
        with pytest.raises(FencedError):
            commit(attempt, 1)
        with pytest.raises(UserError, match="it has failed before: the network was down"):
            attempt.publish(manifest_of(attempt, []), NOW)
        assert find_manifest(root) is None

    def test_to_fence_twice_is_to_fence_once(self, root: str) -> None:
        attempt = begin(root)
        first = fence(root, attempt.record, BY)
        again = Fence(fenced_at=NOW, who="somebody else", why="another reason")
        assert fence(root, attempt.record, again) == first
        with pytest.raises(FencedError, match=GIVEN_UP):
            commit(attempt, 0)

    def test_a_walk_of_unknown_length(self, root: str) -> None:
        attempt = start_attempt(root, record_of(1).model_copy(update={"shards": None}))
        for shard in (0, 1, 3):
            commit(attempt, shard)
        fence(root, attempt.record, BY)
        for shard in (2, 4, 2 + WALK_WINDOW - 1):
            with pytest.raises(FencedError):
                commit(attempt, shard)
        assert sorted(commits(root, [1])) == [0, 1, 3]

    def test_cleaning_up_falls_to_one(self, root: str) -> None:
        attempt = begin(root)
        assert not is_cleanup_claimed(attempt)
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda _: attempt.claim_cleanup(), range(8)))
        assert claims.count(True) == 1
        assert is_cleanup_claimed(attempt)

    def test_what_does_not_balance_is_neither_published_nor_ended(self, root: str) -> None:
        attempt = begin(root, 1)
        controls = [Control(name="rows", expected=2, actual=1)]
        with pytest.raises(UserError, match="don't balance: rows: 2 in, 1 out: this is a bug"):
            attempt.publish(manifest_of(attempt, [commit(attempt, 0)], controls=controls), NOW)
        assert ending_of(attempt.uri) is None

    def test_who_is_overtaken_says_so(self, root: str) -> None:
        slow, fast = begin(root, 1), begin(root, 1)
        fast.publish(manifest_of(fast, [commit(fast, 0)]), NOW)
        with pytest.raises(UserError, match="attempt 2 has published in the meantime; nothing of"):
            slow.publish(manifest_of(slow, [commit(slow, 0)]), NOW)
        # It has not published, and its record doesn't say so.
        assert ending_of(slow.uri) is None

    def test_a_marker_without_one_of_its_files_does_not_count(self, tmp_path: Path) -> None:
        """As after a loss of power."""
        attempt = begin(str(tmp_path), 1)
        part = attempt.write_part(0, pa.table({"value": [1]}))
        outcomes = attempt.write_outcomes(0, pa.table({"component": ["A"]}))
        made = ShardCommit(
            shard=0, attempt=1, code_version="1", part=part, outcomes=outcomes, totals={}
        )
        attempt.commit(made)
        assert commits(str(tmp_path), [1]) == {0: made}
        (tmp_path / outcomes.name).unlink()
        assert commits(str(tmp_path), [1]) == {}


class TestRaces:
    ROUNDS = 12

    def test_to_publish_or_to_be_given_up(self, root: str) -> None:
        for round_ in range(self.ROUNDS):
            uri = uris.join(root, str(round_))
            attempt = begin(uri, 1)
            manifest = manifest_of(attempt, [commit(attempt, 0)])
            ending, error = race(
                lambda uri=uri, attempt=attempt: fence(uri, attempt.record, BY),
                lambda attempt=attempt, manifest=manifest: attempt.publish(manifest, NOW),
            )
            assert isinstance(ending, Ending)
            if ending.outcome == "published":
                assert error is None
                assert load_manifest(uri) == manifest
            else:
                assert isinstance(error, FencedError)
                assert find_manifest(uri) is None

    def test_to_commit_or_to_be_given_up(self, root: str) -> None:
        """What is committed when the fence stands is all that ever will be."""
        shards = 16
        attempt = begin(root, shards)
        together = threading.Barrier(3)
        fenced: list[set[int]] = []

        def give_up() -> None:
            together.wait(30)
            fence(root, attempt.record, BY)
            fenced.append(set(commits(root, [1])))

        def work(first: int) -> set[int]:
            together.wait(30)
            made = set()
            for shard in range(first, shards, 2):
                try:
                    commit(attempt, shard)
                except FencedError:
                    continue
                made.add(shard)
            return made

        with ThreadPoolExecutor(3) as pool:
            giving_up = pool.submit(give_up)
            working = [pool.submit(work, first) for first in range(2)]
            giving_up.result(60)
            made = set().union(*(future.result(60) for future in working))
        assert fenced == [made]
        assert set(commits(root, [1])) == made


def race(one: object, other: object) -> list[object]:
    """What each of two functions gives or raises, when both begin at once."""
    together = threading.Barrier(2)

    def call(function: object) -> object:
        together.wait(30)
        try:
            return function()  # type: ignore[operator]
        except UserError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, (one, other)))


class TestDeadFencers:
    @pytest.mark.parametrize("point", ["fence: before", "fence: ended", "fence: markers taken"])
    def test_another_one_does_the_rest(self, tmp_path: Path, point: str) -> None:
        attempt = begin(str(tmp_path))
        kept = commit(attempt, 2)
        script = (
            "import sys; from ledgerbeam.io.commit.attempts import attempts, fence\n"
            "from ledgerbeam.io.commit.records import Fence\n"
            "uri, by = sys.argv[1:]\n"
            "fence(uri, attempts(uri)[0], Fence.model_validate_json(by))\n"
        )
        died = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), BY.model_dump_json()],
            env={**os.environ, "LEDGERBEAM_FAILPOINT": point},
            check=False,
        )
        assert died.returncode == -signal.SIGKILL
        was_ended = ending_of(attempt.uri) is not None
        assert was_ended == (point != "fence: before")
        again = Fence(fenced_at=NOW, who="somebody else", why="another reason")
        ending = fence(str(tmp_path), attempt.record, again)
        assert ending.fence == (BY if was_ended else again)
        for shard in (0, 1, 3):
            with pytest.raises(FencedError):
                commit(attempt, shard)
        assert commits(str(tmp_path), [1]) == {2: kept}
