"""What is watched, and what people wrote there."""
