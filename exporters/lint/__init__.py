"""A linter for Q/DQ graphs, ours or foreign: what a target refuses, computes differently, or runs in floating point."""
