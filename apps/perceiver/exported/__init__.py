"""What `quartet export` puts beside a model: a reader that needs nothing of this repository."""
