"""Run the command line with `python -m nxm_hf`."""

import sys

from nxm_hf.cli.main import main

sys.exit(main())
