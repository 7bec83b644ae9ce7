"""Fuzzers of every parser of what others may hand over, run by hand; a few inputs of each in CI."""
