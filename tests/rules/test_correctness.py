"""Published examples come out as they were published, or differ as it is explained."""

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest
from tests.correctness.cases import FOLDER, Case, Status, all_cases, run, sources
from tests.correctness.conventions import CONVENTIONS, Convention
from tests.correctness.figures import loan_of
from tests.correctness.page import PAGE, anchor, with_tables

from ledgerbeam.rules.schedules.schedule import Loan
from ledgerbeam.rules.terms.due_dates import parse_frequency

Row = tuple[Fraction, Fraction, Fraction]
"""Interest, principal, and the balance after it."""

CASES = all_cases()
EXPLAINED = [case for case in CASES if case.explained]


def name_of(case: Case) -> str:
    return f"{case.source.id}: {case.name}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_published_example(case: Case) -> None:
    outcome = run(case)
    assert outcome.status is not Status.DIFFERENT, outcome.note


@pytest.mark.parametrize("case", EXPLAINED, ids=name_of)
def test_an_explanation_says_exactly_how_much_it_explains(case: Case) -> None:
    """The largest difference, rounded up to the last digit of what is said."""
    said, largest = case.data["within"], run(case).largest
    last_digit = Fraction(1, 10 ** len(said.partition(".")[2]))
    assert Fraction(said) == largest or 0 < Fraction(said) - largest < last_digit < 1


@pytest.mark.parametrize(
    "case", [case for case in EXPLAINED if case.data["convention"] == "whole-cents"], ids=name_of
)
def test_balances_that_are_not_rounded_give_what_was_published(case: Case) -> None:
    """So that this is what explains the difference, and nothing else."""
    loan = loan_of(case.data["loan"])
    factor = Fraction(loan.annual_rate_percent) * parse_frequency(loan.frequency).months / 1200
    payment = Fraction(loan.payment or 0)
    # Some round the payment that they compute, and some don't.
    annuity = Fraction(loan.principal) * factor / (1 - (1 + factor) ** -loan.term)
    payments = [payment] if payment else [annuity, cents(annuity)]
    found = [differences(case.data, unrounded_rows(loan, factor, each)) for each in payments]
    assert [] in found, found


def unrounded_rows(loan: Loan, factor: Fraction, payment: Fraction) -> list[Row]:
    rows, balance = [], Fraction(loan.principal)
    for number in range(1, loan.term + 1):
        interest = balance * factor
        if number == loan.term:
            repaid = balance
        elif loan.method == "equal_principal":
            repaid = Fraction(loan.principal) / loan.term
        else:
            repaid = min(payment - interest, balance)
        balance -= repaid
        rows.append((interest, repaid, balance))
    return rows


def differences(data: dict[str, Any], rows: list[Row]) -> list[tuple[str, Fraction]]:
    """The published figures that these rows, rounded as they are shown, don't have."""
    totals = {
        "last_payment": rows[-1][0] + rows[-1][1],
        "total_interest": sum((row[0] for row in rows), Fraction(0)),
        "total_payment": sum((row[0] + row[1] for row in rows), Fraction(0)),
    }
    shown = [(data[name], total) for name, total in totals.items() if name in data]
    for line in data.get("rows", "").strip().splitlines():
        number, *published = line.split()
        shown += zip(published, rows[int(number) - 1], strict=True)
    return [(text, ours) for text, ours in shown if text != "-" and cents(ours) != Fraction(text)]


def cents(amount: Fraction) -> Fraction:
    exact = Decimal(amount.numerator) / Decimal(amount.denominator)
    return Fraction(exact.quantize(Decimal("0.01"), ROUND_HALF_UP))


def test_the_page_tells_what_comes_out() -> None:
    text = PAGE.read_text()
    assert text == with_tables(text, [run(case) for case in CASES]), (
        "run `python -m tests.correctness`"
    )


def test_every_source_has_examples_and_a_place() -> None:
    used = {case.source for case in CASES}
    assert used == set(sources())
    assert len({source.id for source in used}) == len(used)
    assert {file.stem for file in FOLDER.glob("*.toml")} == {
        source.topic.lower().replace(" ", "_") for source in used
    }


def test_every_convention_explains_something() -> None:
    assert {case.data["convention"] for case in EXPLAINED} == CONVENTIONS.keys()
    assert not any("convention" in case.data for case in CASES if not case.explained)


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)
def test_a_convention_is_documented_where_it_says(convention: Convention) -> None:
    for path in convention.documented:
        page, _, section = path.partition("#")
        text = (PAGE.parent / page).read_text()
        headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        assert not section or section in map(anchor, headings)


def changed(kind: str, **data: object) -> Case:
    case = next(case for case in CASES if case.kind == kind and not case.explained)
    return case._replace(data=case.data | data)


def test_a_difference_of_a_cent_is_one() -> None:
    case = next(
        case
        for case in CASES
        if case.kind == "schedules" and "payment" in case.data and not case.explained
    )
    payment = float(case.data["payment"])
    wrong = case._replace(data=case.data | {"payment": f"{payment + 0.01:.2f}"})
    assert run(case).status is Status.EQUAL
    assert run(wrong).status is Status.DIFFERENT
    explained = wrong._replace(data=wrong.data | {"explained": "why", "within": "0.01"})
    assert run(explained).status is Status.EXPLAINED


def test_an_explanation_of_less_than_the_difference_explains_nothing() -> None:
    wrong = changed("interest", expected="56.00", explained="why", within="0.10")
    assert run(wrong).status is Status.DIFFERENT


def test_an_explanation_of_no_difference_is_out_of_date() -> None:
    outcome = run(changed("interest", explained="why", within="0.10"))
    assert outcome.status is Status.DIFFERENT
    assert outcome.note == "explained, and not different"


def test_a_rate_that_is_off_by_a_hundredth_is_different() -> None:
    assert run(changed("rates")).status is Status.EQUAL
    assert run(changed("rates", annual_rate_percent="9.68")).status is Status.DIFFERENT
    assert run(changed("rates", annual_rate_percent="9.70")).status is Status.DIFFERENT
