"""Files: CT, label maps, JSON, hashes and checkpoints, read without running code and written whole or not at all."""
