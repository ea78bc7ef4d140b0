"""The exact oracle, and what a test of a member of this project calls, also from outside of it."""
