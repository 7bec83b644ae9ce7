"""Fuzzers, run by hand; a few inputs of each run with the tests."""
