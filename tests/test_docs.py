"""The documentation's commands, run as they stand there, with the output that stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/delivery-marking.md", "docs/loan-close-of-business.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def normal(text: str, home: Path) -> list[str]:
    """Lines without what differs from run to run: times, and where it was run."""
    text = text.replace(str(home), "/home/you")
    text = re.sub(r'"seconds": [\d.]+', '"seconds": …', text)
    text = re.sub(r"^(seconds|.* a second) +[\d.,]+$", r"\1 …", text, flags=re.MULTILINE)
    # A table is as wide as its widest number.
    return [re.sub(r" {2,}", "  ", line) for line in text.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_commands_print_what_the_page_says(page: str, tmp_path: Path) -> None:
    home = tmp_path.resolve()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = 0
    for block in blocks(page, "console"):
        for step in block.split("$ ")[1:]:
            command, _, expected = step.partition("\n")
            done = subprocess.run(
                command,
                shell=True,
                cwd=home,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            commands += 1
            if expected:
                assert normal(done.stdout, home) == normal(expected, home), command
            else:
                assert done.returncode == 0, done.stdout
    assert commands


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    home = tmp_path.resolve()
    (made,) = blocks("README.md", "console")[:1]
    python = "\n".join(blocks("README.md", "python"))
    script = "\n".join(line.removeprefix("$ ") for line in made.splitlines() if line[:2] == "$ ")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        script, shell=True, cwd=home, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "delivery_quantity" in done.stdout


def test_links_lead_somewhere() -> None:
    for page in ("CONTRIBUTING.md", *PAGES):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
