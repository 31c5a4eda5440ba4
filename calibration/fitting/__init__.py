"""From measured steps to coefficients, with intervals and honest errors."""
