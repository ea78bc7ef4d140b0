"""From a config to objects, and what a run does with them over files."""
