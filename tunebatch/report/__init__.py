"""What the user reads: sentences, tables, timelines. Reads results, decides nothing."""
