"""The command line: one caller of the library."""

from erq_export.cli.app import main

__all__ = ["main"]
