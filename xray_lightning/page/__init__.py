"""Pages that are one HTML file each, and figures in them: nothing fetched, all text escaped."""
