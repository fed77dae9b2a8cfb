"""The documentation, carried out as it stands there; see `tests.support.pages`."""

import re
from pathlib import Path

import pytest
from tests.support.pages import ROOT, carry_out, normal, with_outputs

SLOW = {
    "docs/a-bad-night.md",
    "docs/batch-processes.md",
    "docs/canaries.md",
    "docs/from-a-script.md",
    "docs/lookups-tables-totals.md",
    "docs/messages-to-the-future.md",
    "docs/payment-requests.md",
    "docs/starting-a-project.md",
    "docs/your-first-batch-process.md",
}
WITH_DATABASE = {"docs/page-processes.md"}
"""Pages that need a server; see `test_page_docs`."""
WITH_PORT = {"docs/running-the-service.md"}
"""Pages that serve on a port; see `tests/service/test_service_page.py`."""
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
OTHERS = ["CONTRIBUTING.md", *(str(f.relative_to(ROOT)) for f in ROOT.glob("examples/*/README.md"))]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page in PAGES
        if page not in WITH_DATABASE | WITH_PORT
    ],
)
def test_a_page_does_and_prints_what_it_says(page: str, tmp_path: Path) -> None:
    for step in carry_out((ROOT / page).read_text(), tmp_path):
        if step.expected:
            actual, expected = normal(step.actual), normal(step.expected)
            if " audit " in step.command:
                # A command and a launcher that are at it at the same time come in either order.
                actual, expected = sorted(actual), sorted(expected)
            assert actual == expected, step.command
        else:
            assert step.status == 0, f"{step.command}\n{step.actual}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_blocks_begin_as_the_site_and_these_tests_understand(page: str) -> None:
    begins = re.findall(r"^```.+$", (ROOT / page).read_text(), re.MULTILINE)
    assert [line for line in begins if not re.fullmatch(r'```\w+(?: title="\S+")?', line)] == []


def test_files_changes_and_commands_follow_each_other(tmp_path: Path) -> None:
    page = """\
```csv title="in/a.csv"
id
1
```
```diff title="in/a.csv"
 id
-1
+2
```
```console
$ cat in/a.csv
id
2
$ echo "took 12.34 s"; false
took 0.1 s
```
```python
open("b", "w").write("written")
```
```console
$ test -f b && pwd
/home/you
$ test -t 1 && test -t 2 && echo a terminal
a terminal
```
"""
    steps = list(carry_out(page, tmp_path))
    assert [step.status for step in steps] == [0, 1, 0, 0, 0]
    assert [normal(step.actual) for step in steps if step.expected] == [
        normal(step.expected) for step in steps if step.expected
    ]
    assert normal("took 12.34 s") != normal("took 12 apples")
    assert normal("seconds   1.2   \n") == normal("seconds  3.4")
    at_work = "status  {}\nshards  {} of 32 ━━\ncomponents  {}\nrate  5 components a second\n"
    seen = [
        normal(at_work.format("EXECUTING", "2", "1,200 SUCCESS")),
        normal(at_work.format("EXECUTING", "3", "1,800 SUCCESS, 1 EXECUTING")),
        normal(at_work.format("SUCCESS", "3", "1,800 SUCCESS")),
    ]
    assert seen[0] == seen[1] != seen[2]


def test_outputs_are_put_into_a_page_where_they_differ(tmp_path: Path) -> None:
    page = "```console\n$ echo 1 2.0 s\n1 9.9 s\n$ echo 3\n4\n$ true\n```\n"
    assert with_outputs(page, tmp_path) == page.replace("\n4\n", "\n3\n")
