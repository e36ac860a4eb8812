"""Console shows: commands and pages for people."""
