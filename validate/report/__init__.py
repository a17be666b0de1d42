"""The report in words, tables and a picture."""
