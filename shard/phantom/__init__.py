"""Render synthetic radiographs in CheXpert's layout, for tests and the demo."""
