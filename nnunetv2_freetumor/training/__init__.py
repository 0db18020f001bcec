"""Hooks into a segmenter's training: augmentation, section, judge, splits, log."""
