"""What has happened to every part, in one SQLite file: written, kept, delivered, rescued."""
