"""Recordings: manifests, reading, masks, transcripts, batches."""
