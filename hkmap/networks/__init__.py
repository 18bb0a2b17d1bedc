"""The networks: classifiers that show where they look, and weights of others for them. torch; no data, no training."""
