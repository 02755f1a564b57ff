"""Reading files of weights without running code in them, and explaining those that cannot be read."""
