"""Made-up faces for a device to contrast its people with, so that nobody else's pictures are needed."""
