"""What a call of a replaced module may be, and whether what it was tried with still holds."""
