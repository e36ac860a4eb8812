"""Experiment judges: what the exposures and outcomes of a test say."""
