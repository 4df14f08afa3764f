"""`python -m steermoe`: the command line, for launchers that start modules."""

from steermoe.cli.app import main

main()
