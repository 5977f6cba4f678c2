"""Models trained a few rows at a time, as if all rows of a step were in memory at once."""
