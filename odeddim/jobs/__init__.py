"""What a command does, as a function: from files to files, resumable, shared."""
