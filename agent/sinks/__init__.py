"""Where recorded events go. Each module holds one kind of sink and its settings."""
