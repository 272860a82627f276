"""The formats of models, one file each."""
