"""Write the integers down for machines: Q/DQ graphs and engines."""
