"""Text: corpora, sentencepiece, fairseq's token files, batches."""
