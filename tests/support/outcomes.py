"""What a recorded run has to come to, whatever died on the way."""

import ast
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tests.support.recorded import ACCOUNTS, Place, parts, sums

from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Manifest

ROOT = Path(__file__).parents[2]
CODE = ("batch", "io", "transforms", "rules", "pipelines")


def failpoints() -> dict[str, str]:
    """All points that the code names, and where."""
    found: dict[str, str] = {}
    for path in sorted(itertools.chain(*((ROOT / folder).rglob("*.py") for folder in CODE))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: give a plain name"
                assert isinstance(name.value, str), f"{path}:{node.lineno}: give a plain name"
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert name.value not in found, f"{place}: {name.value} is in {found[name.value]}"
                found[name.value] = place
    return found


PRODUCTS = range(1, 31)


class PagedPlace(Place):
    """A place with a table of products, whose prices are raised page by page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        engine = sa.create_engine(self.database)
        with engine.begin() as connection:
            connection.execute(
                sa.text("CREATE TABLE product (id bigint PRIMARY KEY, price bigint)")
            )
            products = [{"id": number, "price": 100 * number} for number in PRODUCTS]
            connection.execute(sa.text("INSERT INTO product VALUES (:id, :price)"), products)
        engine.dispose()

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder}/shop.db"

    def parameters(self, **others: Any) -> dict[str, Any]:
        everything = super().parameters(database=self.database, **others)
        names = ("database", "business_date", "folder", "output")
        return {name: everything[name] for name in names}

    def prices(self) -> dict[int, int]:
        engine = sa.create_engine(self.database)
        with engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT id, price FROM product")).all()
        engine.dispose()
        return {row.id: row.price for row in rows}


def check_raised(place: PagedPlace) -> None:
    """Each product once, whatever was tried twice."""
    assert place.run().status is RunStatus.SUCCESS, place.told()
    assert place.prices() == {number: 100 * number + 1 for number in PRODUCTS}
    assert sorted(read_published(place.run().uri).to_table().column("product").to_pylist()) == [
        *PRODUCTS
    ]


def check_same(place: Place, undisturbed: Manifest) -> None:
    manifest = place.manifest()
    assert parts(manifest) == parts(undisturbed), place.told()
    assert sums(manifest) == sums(undisturbed)
    (report,) = manifest.reports
    total = sum(read_published(place.run().uri).to_table().column("total").to_pylist())
    assert (Path(place.run().uri) / report.name).read_text() == f"{total}\n"


def check_charged(place: Place, undisturbed: Manifest) -> None:
    """Nothing was called twice; what was begun, and died, is unknown and nothing else is."""
    calls = Counter(call.account for call in place.calls())
    assert set(calls.values()) <= {1}, place.told()
    run = place.run()
    unknown = {o.component for o in place.runs.components(run.id, ComponentStatus.UNKNOWN)}
    succeeded = {o.component for o in place.runs.components(run.id, ComponentStatus.SUCCESS)}
    assert unknown | succeeded == set(ACCOUNTS), place.told()
    # A worker may have died between a claim and its call; what became of that, a person has said.
    resolved = {path.stem for path in place.folder.glob("*.resolved")}
    assert succeeded <= set(calls) | resolved
    if unknown:
        assert run.status is RunStatus.FAILURE
        assert f"{len(unknown)} are unknown" in (run.error or "")
    else:
        assert run.status is RunStatus.SUCCESS, place.told()
        check_same(place, undisturbed)
