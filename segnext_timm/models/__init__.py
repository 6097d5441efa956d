"""What a network computes."""
