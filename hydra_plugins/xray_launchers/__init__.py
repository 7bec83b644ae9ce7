"""Launchers of Hydra for the jobs of a sweep: batch jobs of Slurm.

Hydra takes launchers from packages below `hydra_plugins` alone, and imports each at every start:
nothing heavy is imported here.
"""
