"""`python -m drivesim` is the `drivesim` command."""

from drivesim.cli import main

main()
