"""Model folders, their cards, and the Hugging Face Hub."""

from .cards import model_card, write_card
from .push import push_to_hub

__all__ = ["model_card", "push_to_hub", "write_card"]  # what SegNeXt, below this room, uses of it
