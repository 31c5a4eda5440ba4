"""Other people's measurements, one format a file."""
