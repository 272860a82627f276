"""Nodes and settings found for a model."""
