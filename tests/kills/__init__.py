"""Kills of what writes files, at every call that touches the disk and in the middle of writes."""
