"""Training: what optimises, the loop of steps, and the run that keeps them."""
