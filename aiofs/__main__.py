"""`python -m aiofs`."""

import sys

from .cli import main

sys.exit(main())
