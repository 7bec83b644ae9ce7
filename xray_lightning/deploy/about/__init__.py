"""What is known of a model: on the terminal, as JSON, and as a model card."""
