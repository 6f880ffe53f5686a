"""The enrolment file, the state of an open enrolment, and the quality checks of images."""
