"""report.html: the page of one run, and that of several."""
