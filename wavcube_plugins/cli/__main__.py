"""`python -m wavcube_plugins.cli` is the `wavcube` command."""

import sys

from wavcube_plugins.cli import main

sys.exit(main())
