"""What fine-tuned models have in common: the pre-trained body and what is put on it."""
