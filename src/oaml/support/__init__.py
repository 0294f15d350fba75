"""Files, downloads, progress bars, drawings of maps, and metrics as pure functions."""
