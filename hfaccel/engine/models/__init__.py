"""What a whole model does otherwise: which calls leave out padding, or run no forward at all."""
