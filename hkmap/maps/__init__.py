"""Pure map arithmetic: arrays in, arrays out. No paths here."""
