"""The networks that the formats run."""
