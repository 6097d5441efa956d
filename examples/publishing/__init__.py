"""For maintainers of a release: verify published checkpoints, and put them on the Hugging Face Hub."""
