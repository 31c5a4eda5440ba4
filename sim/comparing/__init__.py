"""Settings compared on the same requests and the same luck: cells, pairs, verdicts, pictures."""
