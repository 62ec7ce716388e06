"""Other projects' weight formats, one module each."""
