"""Detectors end to end: pictures and parts in the place of images and one graph, average precision in the place of top-1."""
