"""What others trained: files read, recognized, converted, and published segmenters by name."""
