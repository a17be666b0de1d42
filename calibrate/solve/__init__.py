"""One layer's integers: the equations of the paper, a file each."""
