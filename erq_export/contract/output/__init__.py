"""The output folder of a run: what lies where in it, whose it is, and how files appear in it."""
