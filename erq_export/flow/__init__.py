"""The stages of a run and the order they are called in: the only code above the rooms."""
