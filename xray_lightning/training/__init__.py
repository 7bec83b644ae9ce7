"""Fit, test and resume, on one device, under DDP or MPI; and the record of it."""
