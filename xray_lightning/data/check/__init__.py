"""What is wrong with a data set, all of it at once: `xray data check`."""
