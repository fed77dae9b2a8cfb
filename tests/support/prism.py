"""Beam's local runner in Go, where it is built."""

from pathlib import Path

PRISM = Path(__file__).parents[2] / ".cache" / "prism" / "prism"
ON_PRISM = ("--runner=PrismRunner", f"--prism_location={PRISM}")


def assert_is_built() -> None:
    """Tests on it need it."""
    assert PRISM.exists(), f"{PRISM} isn't there: make prism-test makes it"
