"""Many simulations: cells run by processes or on Ray, and the store of their figures."""
