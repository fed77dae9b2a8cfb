"""`docs/how-it-works.md` names modules and folders that are there."""

import re

import pytest
from tests.repository.test_layout import DIVIDED, LEVELS, graph, place_of
from tests.support.pages import ROOT

SECTIONS = (ROOT / "docs" / "how-it-works.md").read_text().split("\n## ")
MAX_MODULES = 15
"""More than that, and nobody follows a trade from the file to the manifest."""


def section(title: str) -> str:
    (found,) = (text for text in SECTIONS if text.startswith(f"{title}\n"))
    return found


@pytest.mark.parametrize(
    "title",
    ["From a file to the manifest", "From `submit` to `SUCCESS`", "From `POST` to a run"],
)
def test_a_way_leads_through_few_modules(title: str) -> None:
    named = re.findall(r"^\d+\. `(\S+\.py)` ", section(title), re.MULTILINE)
    items = re.findall(r"^\d+\. ", section(title), re.MULTILINE)
    assert 0 < len(named) == len(items) <= MAX_MODULES
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_module_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(\w+/[\w/]+\.py)`", "".join(SECTIONS)))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_table_of_folders_has_them_all_at_their_levels() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\S+)` \|", section("Folders"), re.MULTILINE)
    folders = {place for place in map(place_of, graph()) if (ROOT / place).is_dir()}
    expected = {
        (str(level), place)
        for level, places in enumerate(LEVELS)
        for place in places
        if place in folders - set(DIVIDED) and "/migrations" not in place
    }
    assert len(set(rows)) == len(rows)
    assert set(rows) == expected
