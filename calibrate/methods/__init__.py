"""The ways to choose integers: a file each."""
