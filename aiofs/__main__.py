"""`python -m aiofs`."""

import sys

from .headstart import main

sys.exit(main())
