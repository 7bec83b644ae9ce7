"""The report of a run or of several: on the terminal, as Markdown, and as a page."""
