"""`python -m pipeline`."""

from pipeline.app import main

main()
