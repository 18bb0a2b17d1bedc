"""Pictures for people: overlays and contact sheets."""
