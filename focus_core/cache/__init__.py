"""Keys and values: of chunks, of what questions and answers append to them, and where they are kept."""
