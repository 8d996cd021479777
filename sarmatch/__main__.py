"""`python -m sarmatch`, and `accelerate launch -m sarmatch train ...` for several processes."""

import sys

from sarmatch.cli import main

sys.exit(main())
