"""Leases: shared evenly, taken over from those who are silent, given up by those who end."""

from tests.messages.senders import Bank

from ledgerbeam.messages.store.leases import Leases, declare_units

SECOND = 1_000_000


def member(bank: Bank, owner: str) -> Leases:
    return Leases(f"work {bank.topic}", owner, 10)


def renew(bank: Bank, leases: Leases, seconds: int = 0) -> set[int]:
    with bank.database.begin("leases") as connection:
        leases.renew(connection, seconds * SECOND)
    return set(leases.epochs)


def made(bank: Bank, units: int = 7) -> tuple[Leases, Leases]:
    first = member(bank, "a")
    with bank.database.begin("leases") as connection:
        declare_units(connection, first.work, range(units))
    return first, member(bank, "b")


def test_one_process_has_all_and_two_have_half_each(bank: Bank) -> None:
    first, second = made(bank)
    assert renew(bank, first) == set(range(7))
    assert renew(bank, second) == set()
    assert renew(bank, first) == {0, 1, 2, 3}
    assert renew(bank, second) == {4, 5, 6}
    assert renew(bank, first) == {0, 1, 2, 3}


def test_the_epoch_grows_when_a_unit_changes_hands_and_only_then(bank: Bank) -> None:
    first, second = made(bank)
    for seconds in (0, 5):
        renew(bank, first, seconds)
        assert set(first.epochs.values()) == {1}
    renew(bank, second, 16)
    assert set(second.epochs.values()) == {2}
    assert len(second.epochs) == 7


def test_who_was_silent_finds_out_what_is_left(bank: Bank) -> None:
    first, second = made(bank)
    renew(bank, first)
    assert renew(bank, second, 5) == set()
    assert renew(bank, second, 11) == set(range(7))
    # Both are alive again.
    assert renew(bank, first, 12) == set()
    assert renew(bank, second, 13) == {0, 1, 2}
    assert renew(bank, first, 14) == {3, 4, 5, 6}


def test_who_ends_leaves_nothing_to_wait_for(bank: Bank) -> None:
    first, second = made(bank)
    renew(bank, first)
    with bank.database.begin("leases") as connection:
        first.release(connection)
    assert first.epochs == {}
    assert renew(bank, second) == set(range(7))


def test_there_may_be_more_processes_than_units(bank: Bank) -> None:
    first, second = made(bank, units=1)
    assert renew(bank, first) == {0}
    assert renew(bank, second) == set()
    assert renew(bank, first) == {0}
