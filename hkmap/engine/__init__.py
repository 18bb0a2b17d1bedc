"""What a network sees, what it is worth, and where it is kept: data, losses, runs, metrics, evaluation, prediction."""
