"""Reading manifests, audio and labels, and serving them to fairseq as batches."""
