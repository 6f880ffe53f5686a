"""Images: reading, resizing, preprocessing and drawing, shared by every caller."""
