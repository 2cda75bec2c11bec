"""What reads status and feed while the line runs. Each module holds one kind of service."""
