"""What announces parts. Each module holds one kind of trigger source and its settings."""
