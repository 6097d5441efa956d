"""What the scripts for training and evaluation share. To use a script elsewhere, copy this folder with it."""
