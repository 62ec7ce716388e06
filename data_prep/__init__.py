"""From raw image releases to WebDataset shards. Never imports torch."""
