"""What a fleet costs: money by GPU-hours, energy by a power model, carbon by the grid."""
