"""From markers to a Q/DQ graph."""
