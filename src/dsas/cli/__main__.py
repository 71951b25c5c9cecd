"""`python -m dsas.cli`: the command line, where no script was installed."""

from dsas.cli import main

main()
