"""`python -m tests.correctness` carries out all examples and writes the tables of the page."""

from tests.correctness.cases import Status, all_cases, run
from tests.correctness.page import PAGE, with_tables

outcomes = [run(case) for case in all_cases()]
different = [outcome for outcome in outcomes if outcome.status is Status.DIFFERENT]
if different:
    raise SystemExit("\n".join(f"{o.case.source.id}: {o.case.name}: {o.note}" for o in different))
PAGE.write_text(with_tables(PAGE.read_text(), outcomes))
