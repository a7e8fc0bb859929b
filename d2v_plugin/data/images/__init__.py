"""Images: folders and tar shards, decoding, crops, masks, batches, augmentation on the device."""
