"""Members that no one has published: each choice in one file, with no edit elsewhere."""
