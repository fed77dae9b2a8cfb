"""What became of each component of an instance, from its outcomes and its results."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ledgerbeam.batch.model.outcomes import FailureGroup, Outcome, decisions, grouped, outcomes_of
from ledgerbeam.batch.model.rules import RULE, has_rules
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.attempts import attempts, commits, find_manifest
from ledgerbeam.io.commit.published import EXPIRED, read_part
from ledgerbeam.io.commit.records import ShardCommit
from ledgerbeam.io.errors import ComponentNotFoundError, DamagedFileError
from ledgerbeam.io.storage import stores, uris

_THREADS = 8
_COUNTED = {ComponentStatus.FAILURE: "failed", ComponentStatus.UNKNOWN: "unknown"}
"""The total of a shard by which components of a status are counted."""


def components_of(
    uri: str, status: ComponentStatus | None = None, after: str | None = None
) -> Iterator[Outcome]:
    """Components of committed shards, by shard and then by name.

    Args:
        uri: of the instance.
        status: only those that have it. Plain successes are found by reading the results, and
            are known no more when these have expired.
        after: only those behind the component of that name, as a page goes on behind another.

    Raises:
        ComponentNotFoundError: there is no component `after`.
    """
    is_behind = after is None
    has_expired = stores.stat_of(uris.join(uri, EXPIRED)) is not None
    for commit in commits_of(uri):
        if is_behind and status in _COUNTED and not commit.totals.get(_COUNTED[status]):
            continue
        for outcome in _of_shard(uri, commit, status, has_expired):
            if is_behind and status in (None, outcome.status):
                yield outcome
            is_behind = is_behind or outcome.component == after
    if not is_behind:
        raise ComponentNotFoundError(
            f"{uri}: there is no component {after}: give one that was listed", component=after
        )


def unknown_component(uri: str, component: str) -> tuple[int, Outcome]:
    """The shard of a component that is `UNKNOWN`, and its outcome.

    Args:
        uri: of the instance.
        component: its key, as text.

    Raises:
        ComponentNotFoundError: there is none.
    """
    status = ComponentStatus.UNKNOWN
    for commit in commits_of(uri):
        for outcome in _of_shard(uri, commit, status, has_expired=False):
            if (outcome.component, outcome.status) == (component, status):
                return commit.shard, outcome
    raise ComponentNotFoundError(
        f"{uri}: no component {component} is UNKNOWN: `ledgerbeam components RUN "
        "--status=UNKNOWN` lists those that are",
        component=component,
    )


def outcome_of(uri: str, component: str) -> Outcome | None:
    """The stored outcome of a component; None where there is none, as of a plain success.

    Args:
        uri: of the instance.
        component: its key, as text.
    """
    for commit in commits_of(uri):
        if commit.outcomes is not None:
            for outcome in outcomes_of(read_part(uri, commit.outcomes)):
                if outcome.component == component:
                    return outcome
    return None


def check_retried(uri: str, components: Sequence[str]) -> None:
    """Check that components can be tried again.

    Args:
        uri: of the instance.
        components: their keys, as text.

    Raises:
        ComponentNotFoundError: one has not failed, or nobody has said yet how its call ended.
    """
    wanted = set(components)
    for commit in commits_of(uri):
        found = [] if commit.outcomes is None else outcomes_of(read_part(uri, commit.outcomes))
        named = [outcome for outcome in found if outcome.component in wanted]
        decided = decisions(uri, commit.shard, named)
        for outcome in named:
            if outcome.status is ComponentStatus.FAILURE or outcome.component in decided:
                wanted.discard(outcome.component)
            elif outcome.status is ComponentStatus.UNKNOWN:
                raise ComponentNotFoundError(
                    f"{uri}: component {outcome.component} is UNKNOWN: say by `ledgerbeam resolve` "
                    "how its call has ended, and then retry it",
                    component=outcome.component,
                )
    for name in components:
        if name in wanted:
            raise ComponentNotFoundError(
                f"{uri}: no component {name} has failed: `ledgerbeam components RUN "
                "--status=FAILURE` lists those that have",
                component=name,
            )


def failures_of(
    uri: str, commits: Iterable[ShardCommit], shards: int | None = None
) -> list[FailureGroup]:
    """The components that failed or are unknown, by kind of error; the most frequent one first.

    Args:
        uri: of the instance.
        commits: markers of its shards.
        shards: how many shards with such components are looked at, at most; None for all.
    """
    has_some = (c for c in commits if any(c.totals.get(name) for name in _COUNTED.values()))
    counting = itertools.islice(has_some, shards)
    files = [commit.outcomes for commit in counting if commit.outcomes is not None]
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = pool.map(lambda file: read_part(uri, file), files)
        outcomes = itertools.chain.from_iterable(map(outcomes_of, tables))
        return grouped(o for o in outcomes if o.status is not ComponentStatus.SUCCESS)


def commits_of(uri: str) -> list[ShardCommit]:
    """The markers of an instance's shards: those published, or those on its last input so far."""
    manifest = find_manifest(uri)
    if manifest is not None:
        return manifest.shards
    records = attempts(uri)
    numbers = [r.number for r in records if r.fingerprint == records[-1].fingerprint]
    return [commit for _, commit in sorted(commits(uri, numbers).items())]


def _of_shard(
    uri: str, commit: ShardCommit, status: ComponentStatus | None, has_expired: bool
) -> list[Outcome]:
    outcomes = []
    if commit.outcomes is not None:
        outcomes = outcomes_of(read_part(uri, commit.outcomes))
    if status in (None, ComponentStatus.SUCCESS) and not has_expired:
        known = {outcome.component for outcome in outcomes}
        outcomes += [
            Outcome(name, ComponentStatus.SUCCESS, rule=rule)
            for name, rule in _rules_of_results(uri, commit).items()
            if name not in known
        ]
    return sorted(outcomes, key=lambda outcome: outcome.component)


def _rules_of_results(uri: str, commit: ShardCommit) -> dict[str, int | None]:
    """The components that have results, each with the number of its rule if there are rules."""
    # It brings Beam, without which failures are looked at.
    from ledgerbeam.transforms.columnar.components import component_name

    part = read_part(uri, commit.part)
    if missing := [name for name in commit.key if name not in part.column_names]:
        place = uris.inside(uri, commit.part.name)
        raise DamagedFileError(
            f"{place}: there is no column {missing[0]!r}, which the marker of shard {commit.shard} "
            "names as a part of the key: restore it from a copy",
            uri=place,
        )
    keys = zip(*(part.column(name).to_pylist() for name in commit.key), strict=True)
    names = map(component_name, keys)
    if not has_rules(commit):
        return dict.fromkeys(names)
    return dict(zip(names, part.column(RULE).to_pylist(), strict=True))
