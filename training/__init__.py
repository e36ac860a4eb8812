"""Training makes: bundles from data, and sample populations."""
