"""Edit maps by hand: sessions without a browser, and the page that people paint on."""
