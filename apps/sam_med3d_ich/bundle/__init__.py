"""What `quartet export --format monai` writes: a bundle that MONAI runs without this repository."""
