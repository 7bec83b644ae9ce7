"""The commands of `xray`, each with its options."""
