"""How well the simulator foretells what a real engine did: figures, pictures, a page."""
