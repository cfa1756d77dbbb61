"""What `make demo` shows, and the pictures it draws: the page's examples are the same."""
