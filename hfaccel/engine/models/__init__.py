"""What changes in a model as a whole: which calls leave out padding, and which run no forward at all."""
