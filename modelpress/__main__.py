"""`python -m modelpress` is the `modelpress` command."""

from modelpress.cli import main

main()
