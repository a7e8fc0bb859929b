"""Networks, free of fairseq."""
