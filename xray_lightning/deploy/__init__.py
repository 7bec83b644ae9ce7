"""A trained model put to use: predictions for image files, from the checkpoint alone."""
