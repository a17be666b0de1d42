"""Other people's runtimes, each imported in one file."""
