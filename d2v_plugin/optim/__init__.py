"""Optimisers that fairseq registers."""
