"""Serving answers: it reads a graph and answers prediction requests through it."""
