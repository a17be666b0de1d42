"""Is it right, is it fast: accuracy, parity, latency, report."""
