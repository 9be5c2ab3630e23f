"""Passages out of files: a folder of texts, JSON lines, MedQuAD's XML, the HPO."""
