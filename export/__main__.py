"""python -m export SOURCE --output BUNDLE."""

import sys

from export.cli import main

if __name__ == "__main__":
    sys.exit(main())
