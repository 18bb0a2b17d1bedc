"""Attention Branch Networks: data, losses, training, evaluation. The only layer that imports torch."""
