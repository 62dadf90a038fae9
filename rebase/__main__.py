"""`python -m rebase`: the same command where its script is not on the path."""

from rebase.cli import main

main()
