"""Public data sets, fetched, checked and unpacked into the layout that training reads."""
