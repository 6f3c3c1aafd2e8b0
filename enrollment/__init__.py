"""Who is watched, and what people said there."""
