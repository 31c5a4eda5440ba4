"""What fleet does this traffic need: capacities under objectives, and plans that meet them."""
