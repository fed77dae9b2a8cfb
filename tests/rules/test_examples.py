"""The examples in the docstrings of the rules give what they say."""

import doctest
import importlib

from tests.support.pages import ROOT


def test_examples_of_rules() -> None:
    attempted = 0
    for file in (ROOT / "rules").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        results = doctest.testmod(importlib.import_module(f"ledgerbeam.{name}"))
        assert not results.failed, name
        attempted += results.attempted
    assert attempted
