"""The benchmark: every way to serve the same graph, measured side by side in one run. Start it by `python -m bench`."""
