"""What is timed side by side: this project, its limit, and what others load images with."""
