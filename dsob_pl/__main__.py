"""``python -m dsob_pl``: see ``dsob_pl.cli``."""

from __future__ import annotations

import sys

from dsob_pl.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
