"""`python -P -m baton.cli` is the `baton` command."""

from baton.cli.main import main

main()
