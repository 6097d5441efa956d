"""An image in, labels out."""
