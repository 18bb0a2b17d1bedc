"""How right networks are and how honest their maps: maps from anywhere, metrics, intervals, comparisons, a page."""
