"""What frozen networks see of an image, and how likely that is at each place."""
