"""Where frames come from. Each module holds one kind of camera and its settings."""
