"""`python -m sessionferry.cli` is the `ferry` command."""

from sessionferry.cli import main

main()
