"""What those who work on Holdfast run; nothing here is installed."""
