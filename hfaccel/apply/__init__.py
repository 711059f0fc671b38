"""Action: the only code that changes process state, and the code that reads back what took effect."""
