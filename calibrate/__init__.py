"""Find the integers: calibration of a prepared model to a bundle."""
