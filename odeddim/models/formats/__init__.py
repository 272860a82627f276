"""The formats of models, one module for each."""
