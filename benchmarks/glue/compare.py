"""Compare recipes on GLUE; `python compare.py --help` and README.md say how."""

import sys

from comparison.command_line import main  # type: ignore[import-not-found]  # a sibling of this script

if __name__ == "__main__":
    sys.exit(main())
