"""From other people's layouts and recordings to shards: importers, mining, captions, statistics."""
