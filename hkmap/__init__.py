"""Knowledge maps: from what people know about where to look to networks that look there."""

__version__ = "0.1.0"
