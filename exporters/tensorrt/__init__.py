"""From a graph to an engine, and what the builder says it compiled."""
