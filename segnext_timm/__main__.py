"""`python -m segnext_timm`: the command `segnext-timm`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="segnext-timm")
