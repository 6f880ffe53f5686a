"""What enrolments are stored as, and whether an image is fit to be enrolled."""
