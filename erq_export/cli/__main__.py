"""`python -m erq_export.cli`: the same as `erq-export`."""

from erq_export.cli.app import main

main()
