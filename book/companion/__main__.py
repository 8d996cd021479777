"""`python -m companion`, from `book/` or with it on the path."""

import sys

from companion.cli import main

if __name__ == "__main__":
    sys.exit(main())
