"""`python -m pipeline`."""

import sys

try:
    from pipeline.app import main
except KeyboardInterrupt:  # in the third of a second that the imports take
    sys.exit(130)

main()
