"""What only the papers need: their settings, and what no target can run."""
