"""Sweepers of Hydra that go on after a kill: grids, and Optuna's search.

Hydra takes sweepers from packages below `hydra_plugins` alone, and imports each at every start:
nothing heavy is imported here before a sweep begins.
"""
