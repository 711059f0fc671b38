"""What is measured on this machine and on these weights: speed-ups, and what rounding loses."""
