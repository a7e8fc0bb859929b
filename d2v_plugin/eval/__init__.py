"""Scoring, features, probes and pictures: what is done with a model once it is trained."""
