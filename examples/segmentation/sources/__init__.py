"""Annotations of label tools, one file per tool or format; `prepare_labels.py` makes label files of them."""
