"""Networks of both versions, free of fairseq."""
