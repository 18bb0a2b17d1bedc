"""What a network sees, what it is worth in training, and where it is kept: data, losses, validation, runs, ranks."""
