"""Adapters: what edits a frozen backbone. HRA; later its rivals, behind the same protocol."""
