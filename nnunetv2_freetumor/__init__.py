"""Plant realistic synthetic tumors with exact masks into nnU-Net v2's training batches."""

__version__ = "0.1.0"
