"""Starts a campaign; processes beside this one, which run trials as well, load it once more."""

import sys

from tests.nemesis.campaign import main

if __name__ == "__main__":
    sys.exit(main())
