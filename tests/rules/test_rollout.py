"""Who has a new rule at which stage: sticky, growing, as large as was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.rollout import Rollout, check_rules, point_of

STAGES = ("list", "where", "0.5%", "5%", "25%", "100%")
CUSTOMERS = [f"P{number}" for number in range(100_000)]

shares = st.integers(1, 9_999).map(lambda number: f"{number // 100}.{number % 100:02}%")
names = st.text(min_size=1, max_size=20)


def growing(stages: list[str]) -> Rollout:
    ordered = sorted(stages, key=lambda stage: float(stage[:-1]))
    return Rollout(stages=(*ordered, "100%"), salt="s")


def test_nobody_at_first_and_everybody_at_last() -> None:
    rollout = Rollout(stages=("1%", "100%"), salt="s")
    assert not any(rollout.includes("none", customer) for customer in CUSTOMERS[:1_000])
    assert all(rollout.includes("100%", customer) for customer in CUSTOMERS[:1_000])


@given(customer=names, salt=names)
def test_a_customer_stands_at_the_same_point_for_ever(customer: str, salt: str) -> None:
    assert point_of(salt, customer) == point_of(salt, customer) < 2**64


def test_points_are_those_of_releases_before() -> None:
    assert point_of("expire/2", "P1") == 2_859_958_434_717_855_043
    assert point_of("expire/2", "É") == 8_611_822_983_818_505_888


@given(customer=names, stages=st.lists(shares, min_size=1, max_size=6, unique=True))
def test_who_has_the_new_rule_keeps_it_at_later_stages(customer: str, stages: list[str]) -> None:
    rollout = growing(stages)
    includes = [rollout.includes(stage, customer) for stage in ("none", *rollout.stages)]
    assert includes == sorted(includes)


@given(customer=names, share=shares, others=st.lists(shares, max_size=3, unique=True))
def test_stages_in_between_change_nothing_for_anybody(
    customer: str, share: str, others: list[str]
) -> None:
    alone, among = growing([share]), growing(list({share, *others}))
    assert alone.includes(share, customer) == among.includes(share, customer)


@pytest.mark.parametrize("share", ["0.5%", "5%", "25%", "33.3%"])
@pytest.mark.parametrize("salt", ["expire/2", "expire/3", "interest/2"])
def test_a_share_is_as_large_as_was_asked_for(share: str, salt: str) -> None:
    rollout = Rollout(stages=(share, "100%"), salt=salt)
    expected = float(share[:-1]) / 100
    found = sum(rollout.includes(share, customer) for customer in CUSTOMERS) / len(CUSTOMERS)
    # Five standard deviations of independent draws.
    assert abs(found - expected) < 5 * (expected * (1 - expected) / len(CUSTOMERS)) ** 0.5


def test_salts_choose_independently_of_each_other() -> None:
    one, other = (Rollout(stages=("10%", "100%"), salt=salt) for salt in ("a/2", "a/3"))
    both = sum(one.includes("10%", c) and other.includes("10%", c) for c in CUSTOMERS)
    assert abs(both / len(CUSTOMERS) - 0.01) < 5 * (0.01 * 0.99 / len(CUSTOMERS)) ** 0.5


def test_the_same_salt_chooses_the_same() -> None:
    one, other = (Rollout(stages=(share, "100%"), salt="s") for share in ("10%", "20%"))
    assert all(other.includes("20%", c) for c in CUSTOMERS[:5_000] if one.includes("10%", c))


def test_the_list_and_the_predicate_add_to_what_was_before() -> None:
    rollout = Rollout(
        stages=STAGES, customers=("L", "7"), where=lambda subject: bool(subject == "big"), salt="s"
    )
    last = max(CUSTOMERS[:100], key=lambda customer: point_of("s", customer))
    assert [rollout.includes(stage, "L", "small") for stage in ("none", *STAGES)] == [False] + (
        [True] * 6
    )
    assert [rollout.includes(stage, last, "big") for stage in ("none", *STAGES)] == (
        [False] * 2 + [True] * 5
    )
    assert [rollout.includes(stage, last, "small") for stage in ("none", *STAGES)] == (
        [False] * 6 + [True]
    )
    assert rollout.includes("list", "7")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ()}, "its last stage must be 100%, and its stages are none"),
        ({"stages": ("5%",)}, "its last stage must be 100%, and its stages are 5%"),
        ({"stages": ("5%", "1%", "100%")}, "the stage 1% doesn't grow"),
        ({"stages": ("0%", "100%")}, "the stage 0% doesn't grow"),
        ({"stages": ("101%", "100%")}, "the stage 101% doesn't grow"),
        ({"stages": ("half", "100%")}, "'half' is no stage"),
        ({"stages": ("list", "100%")}, "the stage list and customers belong together"),
        ({"stages": ("100%",), "customers": ("P1",)}, "list and customers belong together"),
        ({"stages": ("where", "100%")}, "the stage where and where belong together"),
        ({"stages": ("list", "list", "100%"), "customers": ("P1",)}, "a stage is there twice"),
        ({"stages": ("100%",), "customers": "P1"}, "write ('P1',)"),
        ({"stages": ("100%",), "failures": "many"}, "failures must be a count or a share"),
    ],
)
def test_what_a_rollout_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        Rollout(**arguments)  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_rules_are_one_or_two_with_a_rollout() -> None:
    rollout = Rollout(stages=("100%",))
    check_rules("D", {}, None)
    check_rules("D", {1: print}, None)
    check_rules("D", {1: print, 2: print}, rollout)
    check_rules("D", {32_767: print}, None)
    for rules, given_rollout, message in (
        ({1: print, 2: print}, None, "rollout is missing"),
        ({1: print}, rollout, "rules has 1: give two"),
        ({1: print, 2: print, 3: print}, rollout, "rules has 3: keep the present one"),
        ({0: print}, None, "rules has 0"),
        ({32_768: print}, None, "rules has 32768"),
        ({1: "print"}, None, "rules has 1: 'print'"),
    ):
        with pytest.raises(DefinitionError, match=message):
            check_rules("D", rules, given_rollout)
