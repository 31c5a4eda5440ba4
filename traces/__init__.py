"""Request traces: read, make, transform. No other kvcast package is imported here."""
