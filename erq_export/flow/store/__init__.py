"""The store: artifacts kept by content, made once, whoever asks."""
