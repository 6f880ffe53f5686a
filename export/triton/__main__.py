"""``python -m export.triton``."""

import sys

from export.triton.repository import main

if __name__ == "__main__":
    sys.exit(main())
